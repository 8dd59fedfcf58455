//! One decoder for every architecture: weights on a backend, and the ops of a layer, in prefill and in decode.
//!
//! ```text
//! x = embed(tokens)
//! per layer:  y = norm(x)   q, k, v = qkv(y)   o = Attend(q, k, v)    x += output(o)
//!             y = norm(x)   g, u = gate_up(y)                         x += down(silu(g) * u)
//! logits = output(norm(x))
//! ```
//! It records ops and decides nothing: which part of a prompt runs when, and which lanes decode, is the engine's.

mod buffers;

mod weights;

mod layer;

mod prefill;

mod decode;

use crate::forward::{Forward, PassView};
use crate::{Checkpoint, Error, ModelConfig};
use backend::{AlgorithmId, Backend, HeadNorms, IndexUnits, MemoryUse, Rope, Runtime, RuntimeShape, StepKey};
use buffers::{DecodeBuffers, PassBuffers, UnitBuffers};
use kv::bucketed_lru::Eviction;
use kv::{LaneId, RowId};
use sparse::Algorithms;
use std::ops::Range;
use weights::{LayerWeights, Weights};

/// What a decoder's buffers are sized for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DecoderLimits {
    /// Sequences that decode at once.
    pub max_lanes: usize,
    /// Longest sequence, in tokens.
    pub max_tokens: usize,
    /// Tokens of a prefill pass; a longer prompt takes several.
    pub prefill_tokens: usize,
}

/// A model on a backend.
pub struct Decoder {
    config: ModelConfig,
    weights: Weights,
    algorithms: Algorithms,
    decode: DecodeBuffers,
    unit: UnitBuffers,
    passes: Vec<PassBuffers>,
    /// Tokens of a prefill unit that pass a layer together.
    stride_tokens: usize,
}

impl Decoder {
    /// Prepares the weights, reporting `(bytes done, bytes in all)` of the checkpoint, and allocates the buffers.
    ///
    /// # Errors
    /// What the backend refuses: no memory, shapes without kernels.
    pub fn load(
        backend: &dyn Backend,
        checkpoint: &Checkpoint,
        limits: DecoderLimits,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, Error> {
        let config = checkpoint.config().clone();
        let shape = config.runtime_shape(limits, 0);
        Ok(Decoder {
            weights: Weights::load(backend, checkpoint, progress)?,
            algorithms: Algorithms::new(backend, shape.geometry)?,
            decode: DecodeBuffers::new(backend, &config, limits)?,
            unit: UnitBuffers::new(backend, &config)?,
            passes: PassBuffers::all(backend, &config, limits)?,
            stride_tokens: backend.prefill_form().stride_tokens,
            config,
        })
    }

    /// What [`Decoder::load`] will allocate.
    pub fn plan(backend: &dyn Backend, config: &ModelConfig, limits: DecoderLimits) -> Vec<MemoryUse> {
        vec![
            MemoryUse { name: "weights", bytes: weights::bytes(backend, config) },
            MemoryUse { name: "prefill staging", bytes: PassBuffers::staging_bytes(backend, config, limits) },
            MemoryUse { name: "prefill hidden states", bytes: PassBuffers::hidden_bytes(backend, config, limits) },
            MemoryUse { name: "prefill unit", bytes: UnitBuffers::bytes(backend, config) },
            MemoryUse { name: "decode activations", bytes: DecodeBuffers::bytes(backend, config, limits) },
        ]
    }

    /// The model.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The algorithms that its lanes may run.
    pub fn algorithms(&self) -> &Algorithms {
        &self.algorithms
    }

    /// The same, for a study that puts observers around them before it decodes.
    pub fn algorithms_mut(&mut self) -> &mut Algorithms {
        &mut self.algorithms
    }

    /// The per-head norms of a layer, where the model has them.
    fn head_norms<'a>(&self, layer: &'a LayerWeights) -> Option<HeadNorms<'a>> {
        let [q, k] = layer.head_norms.as_ref()?;
        Some(HeadNorms { q, k, eps: self.config.norm_eps })
    }
}

impl ModelConfig {
    /// Layers, KV heads and head size: what a KV row holds.
    pub fn geometry(&self) -> kv::Geometry {
        kv::Geometry { layers: self.layers, kv_heads: self.kv_heads, head_dim: self.head_dim }
    }

    /// What a runtime for this model is sized for, without host memory behind its pool.
    pub fn runtime_shape(&self, limits: DecoderLimits, pool_rows: usize) -> RuntimeShape {
        RuntimeShape {
            geometry: self.geometry(),
            q_heads: self.q_heads,
            vocab: self.vocab_size,
            pool_rows,
            dram_rows: 0,
            eviction: Eviction::default(),
            max_lanes: limits.max_lanes,
            max_tokens: limits.max_tokens,
            rope: Rope { inv_freq: self.rope.inv_freq.clone(), attention_factor: self.rope.attention_factor },
        }
    }

    /// Weights of one layer's matrices: what a token's way through it costs.
    pub fn layer_parameters(&self) -> usize {
        self.hidden * (self.qkv_columns() + self.q_columns() + 3 * self.mlp)
    }

    /// Columns of the fused q, k and v.
    fn qkv_columns(&self) -> usize {
        (self.q_heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Columns of the queries, and of attention's output.
    pub fn q_columns(&self) -> usize {
        self.q_heads * self.head_dim
    }
}

impl Forward for Decoder {
    fn layers(&self) -> usize {
        self.config.layers
    }

    fn prefill_layer(&self, runtime: &dyn Runtime, pass: &PassView<'_>, layer: usize, tokens: Range<usize>) {
        self.record_prefill_layer(runtime, pass, layer, tokens);
    }

    fn prefill_gather(&self, runtime: &dyn Runtime, pass: &PassView<'_>, layer: usize) {
        runtime.gather_layer(self.passes[pass.slot].staging(layer), layer, 0..pass.first, pass.kv_rows);
    }

    fn prefill_scatter(&self, runtime: &dyn Runtime, pass: &PassView<'_>, layer: usize) {
        let tokens = pass.first..pass.first + pass.tokens.len();
        runtime.scatter_layer(self.passes[pass.slot].staging(layer), layer, tokens, pass.kv_rows);
    }

    fn prefill_index(
        &self,
        runtime: &dyn Runtime,
        algorithm: AlgorithmId,
        layer: usize,
        kv_rows: &[RowId],
        summary_rows: &[RowId],
        tokens: (usize, usize),
    ) {
        let units = IndexUnits::Rows { kv_rows, summary_rows, tokens };
        self.algorithms.get(algorithm).index(runtime, algorithm, layer, units);
    }

    fn prefill_sample(&self, runtime: &dyn Runtime, pass: &PassView<'_>, lanes: &[LaneId]) {
        self.record_prefill_sample(runtime, pass, lanes);
    }

    fn decode(&self, runtime: &dyn Runtime, key: StepKey) {
        self.record_decode(runtime, key);
    }
}
