//! The model's weights on a backend: fused and packed there, the file no longer needed.

use crate::{Checkpoint, Error, ModelConfig};
use backend::{Backend, Weight, WeightRole};

/// All of a model's weights.
pub(super) struct Weights {
    /// `[vocab, hidden]`
    pub(super) embedding: Weight,
    pub(super) layers: Vec<LayerWeights>,
    /// `[hidden]`
    pub(super) norm: Weight,
    /// `[vocab, hidden]`: the embedding where tied.
    pub(super) output: Weight,
}

/// One layer's.
pub(super) struct LayerWeights {
    /// `[hidden]`
    pub(super) attention_norm: Weight,
    /// `[(q_heads + 2 kv_heads) d, hidden]`
    pub(super) qkv: Weight,
    /// `[d]` each, of queries and keys.
    pub(super) head_norms: Option<[Weight; 2]>,
    /// `[hidden, q_heads d]`
    pub(super) attention_output: Weight,
    /// `[hidden]`
    pub(super) mlp_norm: Weight,
    /// `[2 mlp, hidden]`
    pub(super) gate_up: Weight,
    /// `[hidden, mlp]`
    pub(super) down: Weight,
}

impl Weights {
    pub(super) fn load(
        backend: &dyn Backend,
        checkpoint: &Checkpoint,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, Error> {
        let config = checkpoint.config().clone();
        let total = checkpoint.stored_bytes_total();
        let mut loader = Loader { backend, checkpoint, progress, done: 0, total };
        let embedding = loader.weight(WeightRole::Embedding, &["model.embed_tokens"], false)?;
        let layers = (0..config.layers).map(|l| loader.layer(&config, l)).collect::<Result<_, _>>()?;
        let norm = loader.weight(WeightRole::Norm, &["model.norm"], false)?;
        let output = match config.tied {
            true => embedding.clone(),
            false => loader.weight(WeightRole::Output, &["lm_head"], false)?,
        };
        Ok(Weights { embedding, layers, norm, output })
    }
}

struct Loader<'a> {
    backend: &'a dyn Backend,
    checkpoint: &'a Checkpoint,
    progress: &'a mut dyn FnMut(u64, u64),
    done: u64,
    total: u64,
}

impl Loader<'_> {
    fn layer(&mut self, config: &ModelConfig, layer: usize) -> Result<LayerWeights, Error> {
        let name = |part: &str| format!("model.layers.{layer}.{part}");
        let [q, k, v] = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"].map(name);
        let [gate, up] = ["mlp.gate_proj", "mlp.up_proj"].map(name);
        let norm = |loader: &mut Self, part| loader.weight(WeightRole::Norm, &[&name(part)], false);
        Ok(LayerWeights {
            attention_norm: norm(self, "input_layernorm")?,
            qkv: self.weight(WeightRole::Qkv, &[&q, &k, &v], config.qkv_bias)?,
            head_norms: match config.qk_norm {
                true => Some([norm(self, "self_attn.q_norm")?, norm(self, "self_attn.k_norm")?]),
                false => None,
            },
            attention_output: self.weight(WeightRole::AttentionOutput, &[&name("self_attn.o_proj")], config.o_bias)?,
            mlp_norm: norm(self, "post_attention_layernorm")?,
            gate_up: self.weight(WeightRole::GateUp, &[&gate, &up], false)?,
            down: self.weight(WeightRole::Down, &[&name("mlp.down_proj")], false)?,
        })
    }

    /// Prepares the tensors `NAME.weight` (and `NAME.bias`) as one weight.
    fn weight(&mut self, role: WeightRole, names: &[&str], bias: bool) -> Result<Weight, Error> {
        let weight = self.checkpoint.prepare(self.backend, role, names, bias)?;
        for name in names {
            self.done += self.checkpoint.stored_bytes(&format!("{name}.weight"))?;
            self.done += if bias { self.checkpoint.stored_bytes(&format!("{name}.bias"))? } else { 0 };
        }
        (self.progress)(self.done, self.total);
        Ok(weight)
    }
}

/// Bytes that the prepared weights of a model take, the sketch's rotation included.
pub(super) fn bytes(backend: &dyn Backend, config: &ModelConfig) -> u64 {
    let (hidden, mlp, q, qkv) = (config.hidden, config.mlp, config.q_columns(), config.qkv_columns());
    let of = |role, shape| backend.weight_bytes(role, shape);
    // Norms and biases are vectors alike.
    let vector = |len: usize| of(WeightRole::Norm, [1, len]);
    let only = |wanted: bool, bytes: u64| if wanted { bytes } else { 0 };
    let layer = of(WeightRole::Qkv, [qkv, hidden])
        + of(WeightRole::AttentionOutput, [hidden, q])
        + of(WeightRole::GateUp, [2 * mlp, hidden])
        + of(WeightRole::Down, [hidden, mlp])
        + 2 * vector(hidden)
        + only(config.qk_norm, 2 * vector(config.head_dim))
        + only(config.qkv_bias, vector(qkv))
        + only(config.o_bias, vector(hidden));
    let output = only(!config.tied, of(WeightRole::Output, [config.vocab_size, hidden]));
    let rotation = of(WeightRole::Rotation, [config.kv_heads * config.head_dim, config.head_dim]);
    of(WeightRole::Embedding, [config.vocab_size, hidden])
        + config.layers as u64 * layer
        + vector(hidden)
        + output
        + rotation
}
