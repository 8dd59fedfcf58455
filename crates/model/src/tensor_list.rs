//! The tensors that a configuration asks for: names in Hugging Face's spelling, and shapes.

use crate::ModelConfig;

/// One tensor of the decoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its Hugging Face name, such as `model.layers.3.self_attn.q_proj.weight`.
    pub name: String,
    /// `[rows, columns]` of a matrix, `[n]` of a norm or bias.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no values; never true of a checked configuration.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it is a matrix (kept as bf16) rather than a norm or bias (kept as f32).
    pub fn is_matrix(&self) -> bool {
        self.shape.len() == 2
    }
}

impl ModelConfig {
    /// Every tensor that the decoder needs, in the order of the forward pass. A tied output matrix is not listed.
    pub fn tensors(&self) -> Vec<TensorSpec> {
        let spec = |name: String, shape: &[usize]| TensorSpec { name, shape: shape.to_vec() };
        let mut list = vec![spec("model.embed_tokens.weight".into(), &[self.vocab_size, self.hidden])];
        for layer in 0..self.layers {
            list.extend(
                self.layer_tensors()
                    .into_iter()
                    .map(|(name, shape)| spec(format!("model.layers.{layer}.{name}"), &shape)),
            );
        }
        list.push(spec("model.norm.weight".into(), &[self.hidden]));
        if !self.tied {
            list.push(spec("lm_head.weight".into(), &[self.vocab_size, self.hidden]));
        }
        list
    }

    /// The tensors of one layer, without the prefix `model.layers.N.`.
    fn layer_tensors(&self) -> Vec<(&'static str, Vec<usize>)> {
        let (hidden, mlp) = (self.hidden, self.mlp);
        let (q, kv) = (self.q_heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut list = vec![
            ("input_layernorm.weight", vec![hidden]),
            ("self_attn.q_proj.weight", vec![q, hidden]),
            ("self_attn.k_proj.weight", vec![kv, hidden]),
            ("self_attn.v_proj.weight", vec![kv, hidden]),
        ];
        if self.qkv_bias {
            list.push(("self_attn.q_proj.bias", vec![q]));
            list.push(("self_attn.k_proj.bias", vec![kv]));
            list.push(("self_attn.v_proj.bias", vec![kv]));
        }
        if self.qk_norm {
            list.push(("self_attn.q_norm.weight", vec![self.head_dim]));
            list.push(("self_attn.k_norm.weight", vec![self.head_dim]));
        }
        list.push(("self_attn.o_proj.weight", vec![hidden, q]));
        if self.o_bias {
            list.push(("self_attn.o_proj.bias", vec![hidden]));
        }
        list.extend([
            ("post_attention_layernorm.weight", vec![hidden]),
            ("mlp.gate_proj.weight", vec![mlp, hidden]),
            ("mlp.up_proj.weight", vec![mlp, hidden]),
            ("mlp.down_proj.weight", vec![hidden, mlp]),
        ]);
        list
    }

    /// Whether a tensor that [`ModelConfig::tensors`] does not list may be left unread without changing an answer.
    pub(crate) fn may_ignore(&self, name: &str) -> bool {
        // Old checkpoints store the inverse frequencies, which follow from the configuration; a tied model may store
        // its output matrix a second time.
        name.ends_with("rotary_emb.inv_freq") || (self.tied && name == "lm_head.weight")
    }
}
