//! Weights in a GGUF file, under their Hugging Face names and in Hugging Face's order of rows.

use std::borrow::Cow;
use std::collections::BTreeSet;

use crate::gguf::{Gguf, TensorInfo};
use crate::{Architecture, Error, ModelConfig};
use backend::{Tensor, TensorData};

/// Llama 3.1's frequency divisors, read with the configuration.
pub(crate) const ROPE_FREQS: &str = "rope_freqs.weight";

/// Names outside the layers.
const OUTER: [(&str, &str); 3] = [
    ("model.embed_tokens.weight", "token_embd.weight"),
    ("model.norm.weight", "output_norm.weight"),
    ("lm_head.weight", "output.weight"),
];

/// Names inside a layer, without their prefixes and `.weight` or `.bias`.
const INNER: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

pub(super) struct GgufWeights {
    gguf: Gguf,
    /// `(q_heads, kv_heads)` if rows of q and k are stored for interleaved rotation.
    interleaved: Option<(usize, usize)>,
}

impl GgufWeights {
    pub(super) fn new(gguf: Gguf, config: &ModelConfig) -> Result<Self, Error> {
        let interleaved = (config.architecture == Architecture::Llama).then_some((config.q_heads, config.kv_heads));
        let weights = Self { gguf, interleaved };
        weights.check(config)?;
        Ok(weights)
    }

    fn check(&self, config: &ModelConfig) -> Result<(), Error> {
        let mut known: BTreeSet<String> = BTreeSet::from([ROPE_FREQS.to_owned()]);
        for spec in config.tensors() {
            let (name, info) = self.find(&spec.name)?;
            if info.shape != spec.shape {
                let (file, found) = (self.gguf.file().to_owned(), info.shape.clone());
                return Err(Error::Shape { file, name, found, expected: spec.shape });
            }
            known.insert(name);
        }
        let ignored = |name: &str| known.contains(name) || name.ends_with("attn_rot_embd.weight");
        match self.gguf.tensors().find(|(name, _)| !ignored(name)) {
            None => Ok(()),
            Some((name, _)) => Err(Error::UnexpectedTensor {
                file: self.gguf.file().to_owned(),
                name: name.to_owned(),
                architecture: config.architecture.name(),
            }),
        }
    }

    pub(super) fn tensor(&self, name: &str) -> Result<Tensor<'_>, Error> {
        let (_, info) = self.find(name)?;
        let mut data = self.gguf.values(info);
        if let Some((q_heads, kv_heads)) = self.interleaved {
            let heads = match () {
                () if name.contains(".q_proj.") => Some(q_heads),
                () if name.contains(".k_proj.") => Some(kv_heads),
                () => None,
            };
            if let Some(heads) = heads {
                let columns = info.shape.get(1).copied().unwrap_or(1);
                data = match data {
                    TensorData::Bf16(values) => TensorData::Bf16(Cow::Owned(half_split(&values, heads, columns))),
                    TensorData::F32(values) => TensorData::F32(Cow::Owned(half_split(&values, heads, columns))),
                };
            }
        }
        Ok(Tensor { name: name.to_owned(), shape: info.shape.clone(), data })
    }

    pub(super) fn stored_bytes(&self, name: &str) -> Result<u64, Error> {
        self.find(name).map(|(_, info)| self.gguf.stored_bytes(info))
    }

    /// A tensor by its Hugging Face name, with its name in the file.
    fn find(&self, name: &str) -> Result<(String, &TensorInfo), Error> {
        let stored = stored_name(name).unwrap_or_else(|| name.to_owned());
        match self.gguf.tensor(&stored) {
            Some(info) => Ok((stored, info)),
            None => Err(Error::MissingTensor { file: self.gguf.file().to_owned(), name: stored }),
        }
    }
}

/// The name in a GGUF file of a Hugging Face name.
fn stored_name(name: &str) -> Option<String> {
    if let Some((_, stored)) = OUTER.iter().find(|(outer, _)| *outer == name) {
        return Some((*stored).to_owned());
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (module, kind) = rest.rsplit_once('.')?;
    let (_, stored) = INNER.iter().find(|(inner, _)| *inner == module)?;
    Some(format!("blk.{layer}.{stored}.{kind}"))
}

/// Undoes llama.cpp's permutation of q and k: within a head the pair `i` of the rotation lies in rows `2 i` and
/// `2 i + 1` of the file, and in rows `i` and `i + head_dim / 2` here.
fn half_split<T: Copy>(values: &[T], heads: usize, columns: usize) -> Vec<T> {
    let head_values = values.len() / heads;
    let half = head_values / columns / 2;
    let mut split = Vec::with_capacity(values.len());
    for head in values.chunks_exact(head_values) {
        for part in 0..2 {
            for pair in 0..half {
                let row = 2 * pair + part;
                split.extend_from_slice(&head[row * columns..(row + 1) * columns]);
            }
        }
    }
    split
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_hugging_face() {
        assert_eq!(stored_name("model.layers.12.self_attn.q_proj.bias").as_deref(), Some("blk.12.attn_q.bias"));
        assert_eq!(stored_name("model.layers.0.mlp.down_proj.weight").as_deref(), Some("blk.0.ffn_down.weight"));
        assert_eq!(stored_name("lm_head.weight").as_deref(), Some("output.weight"));
        assert_eq!(stored_name("model.layers.0.mlp.other.weight"), None);
    }

    #[test]
    fn rows_of_a_head_are_split_in_halves() {
        // 2 heads of 6 rows, 2 columns; in the file the rows of a head are pair 0, 0, 1, 1, 2, 2
        let stored: Vec<u32> = (0..24).collect();
        let rows: Vec<u32> = half_split(&stored, 2, 2).chunks(2).map(|row| row[0] / 2).collect();
        assert_eq!(rows, [0, 2, 4, 1, 3, 5, 6, 8, 10, 7, 9, 11]);
        assert_eq!(half_split(&[0, 1, 2, 3], 1, 1), [0, 2, 1, 3]);
    }
}
