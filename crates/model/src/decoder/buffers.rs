//! Activation buffers, allocated once.

use super::DecoderLimits;
use crate::forward::PASSES_MAX;
use crate::{Error, ModelConfig};
use backend::{Backend, Buffer, Partial};
use sparse::AttendBuffers;

/// Tokens whose logits are there at once where a prompt's tokens are scored.
pub(super) const SCORE_ROWS: usize = 64;

/// What a layer's ops hand to each other: one row per lane or token.
pub(super) struct LayerBuffers {
    /// `[rows, hidden]`: normed input of a product.
    pub(super) normed: Buffer,
    /// `[rows, (q_heads + 2 kv_heads) d]`
    pub(super) qkv: Buffer,
    /// `[rows, q_heads d]`
    pub(super) q: Buffer,
    /// `[rows, 2 mlp]`
    pub(super) gate_up: Buffer,
    /// `[rows, mlp]`
    pub(super) mlp: Buffer,
    /// `[rows, hidden]`: what the residual stream gains next.
    pub(super) delta: Buffer,
}

impl LayerBuffers {
    fn columns(config: &ModelConfig) -> [usize; 6] {
        let (hidden, mlp) = (config.hidden, config.mlp);
        [hidden, config.qkv_columns(), config.q_columns(), 2 * mlp, mlp, hidden]
    }

    fn new(backend: &dyn Backend, config: &ModelConfig, rows: usize) -> Result<Self, Error> {
        let [normed, qkv, q, gate_up, mlp, delta] = Self::columns(config);
        let buffer = |columns| backend.product_buffer("activations", rows, columns);
        Ok(LayerBuffers {
            normed: buffer(normed)?,
            qkv: buffer(qkv)?,
            q: buffer(q)?,
            gate_up: buffer(gate_up)?,
            mlp: buffer(mlp)?,
            delta: buffer(delta)?,
        })
    }

    fn bytes(backend: &dyn Backend, config: &ModelConfig, rows: usize) -> u64 {
        Self::columns(config).iter().map(|columns| backend.product_buffer_bytes(rows, *columns)).sum()
    }
}

/// Buffers of the decode step, a row per lane.
pub(super) struct DecodeBuffers {
    /// `[lanes, hidden]`: the residual stream.
    pub(super) x: Buffer,
    pub(super) layer: LayerBuffers,
    pub(super) attend: AttendBuffers,
    /// `[lanes, vocab]`
    pub(super) logits: Buffer,
}

impl DecodeBuffers {
    pub(super) fn new(backend: &dyn Backend, config: &ModelConfig, limits: DecoderLimits) -> Result<Self, Error> {
        let lanes = limits.max_lanes;
        let partial = || -> Result<Partial, Error> {
            let output = backend.buffer("attention output", lanes, config.q_columns())?;
            Ok(Partial { output, lse: backend.buffer("attention output", lanes, config.q_heads)? })
        };
        Ok(DecodeBuffers {
            x: backend.buffer("activations", lanes, config.hidden)?,
            layer: LayerBuffers::new(backend, config, lanes)?,
            attend: AttendBuffers { exact: partial()?, rest: partial()? },
            logits: backend.buffer("logits", lanes, config.vocab_size)?,
        })
    }

    pub(super) fn bytes(backend: &dyn Backend, config: &ModelConfig, limits: DecoderLimits) -> u64 {
        let lanes = limits.max_lanes;
        let partial = backend.buffer_bytes(lanes, config.q_columns()) + backend.buffer_bytes(lanes, config.q_heads);
        backend.buffer_bytes(lanes, config.hidden)
            + LayerBuffers::bytes(backend, config, lanes)
            + 2 * partial
            + backend.buffer_bytes(lanes, config.vocab_size)
    }
}

/// Buffers of the prefill unit in work: units run one at a time, so all passes share them.
pub(super) struct UnitBuffers {
    pub(super) layer: LayerBuffers,
    /// `[stride_tokens, q_heads d]`
    pub(super) attended: Buffer,
    /// `[SCORE_ROWS, vocab]`: one row for a prompt's last token, all of them for its log-probabilities.
    pub(super) logits: Buffer,
}

impl UnitBuffers {
    pub(super) fn new(backend: &dyn Backend, config: &ModelConfig) -> Result<Self, Error> {
        let stride = backend.prefill_form().stride_tokens;
        Ok(UnitBuffers {
            layer: LayerBuffers::new(backend, config, stride)?,
            attended: backend.product_buffer("activations", stride, config.q_columns())?,
            logits: backend.buffer("logits", SCORE_ROWS, config.vocab_size)?,
        })
    }

    pub(super) fn bytes(backend: &dyn Backend, config: &ModelConfig) -> u64 {
        let stride = backend.prefill_form().stride_tokens;
        LayerBuffers::bytes(backend, config, stride)
            + backend.product_buffer_bytes(stride, config.q_columns())
            + backend.buffer_bytes(SCORE_ROWS, config.vocab_size)
    }
}

/// What an open pass keeps between its units.
pub(super) struct PassBuffers {
    /// `[prefill_tokens, hidden]`: the residual stream of the pass's tokens.
    pub(super) x: Buffer,
    /// K and V of the layer in work, for the whole sequence so far; layers take them in turn.
    stagings: Vec<Buffer>,
}

impl PassBuffers {
    pub(super) fn all(backend: &dyn Backend, config: &ModelConfig, limits: DecoderLimits) -> Result<Vec<Self>, Error> {
        let shape = config.runtime_shape(limits, 0);
        let one = |_| {
            Ok(PassBuffers {
                x: backend.buffer("prefill hidden states", limits.prefill_tokens, config.hidden)?,
                stagings: (0..backend.prefill_form().stagings)
                    .map(|_| backend.staging(&shape, limits.max_tokens))
                    .collect::<Result<_, _>>()?,
            })
        };
        (0..PASSES_MAX).map(one).collect()
    }

    /// The layer's.
    pub(super) fn staging(&self, layer: usize) -> &Buffer {
        &self.stagings[layer % self.stagings.len()]
    }

    pub(super) fn staging_bytes(backend: &dyn Backend, config: &ModelConfig, limits: DecoderLimits) -> u64 {
        (PASSES_MAX * backend.prefill_form().stagings) as u64
            * backend.staging_bytes(&config.runtime_shape(limits, 0), limits.max_tokens)
    }

    pub(super) fn hidden_bytes(backend: &dyn Backend, config: &ModelConfig, limits: DecoderLimits) -> u64 {
        PASSES_MAX as u64 * backend.buffer_bytes(limits.prefill_tokens, config.hidden)
    }
}
