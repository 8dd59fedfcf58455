//! Metadata of a GGUF file.
//!
//! The file says less than a `config.json`: biases, tying and the vocabulary's size are read off its tensors.

use super::rope::{Origin, RopeConfig, Scaling, Yarn, yarn_mscale};
use super::{Architecture, ModelConfig};
use crate::Error;
use crate::gguf::{Gguf, Metadata};
use backend::TensorData;

/// Keys that scale something this decoder does not scale. Architectures that use them are others, so their presence is
/// refused.
const UNKNOWN_SCALES: [&str; 6] = [
    "logit_scale",
    "embedding_scale",
    "residual_scale",
    "attention.scale",
    "attn_logit_softcapping",
    "final_logit_softcapping",
];

impl ModelConfig {
    /// Reads the metadata of architecture `llama`, `qwen2` or `qwen3`.
    pub(crate) fn from_gguf(gguf: &Gguf) -> Result<Self, Error> {
        let metadata = gguf.metadata();
        let architecture = match metadata.str("general.architecture")? {
            "llama" => Architecture::Llama,
            "qwen2" => Architecture::Qwen2,
            "qwen3" => Architecture::Qwen3,
            other => return Err(metadata.unsupported("general.architecture", other, "llama, qwen2, qwen3")),
        };
        let key = |field: &str| format!("{}.{field}", architecture.name());
        refuse_unsupported(metadata, &key)?;

        let hidden = metadata.usize(&key("embedding_length"))?;
        let heads_key = key("attention.head_count");
        let q_heads = metadata.uniform_usize_opt(&heads_key)?.ok_or_else(|| metadata.missing(&heads_key))?;
        let kv_heads = metadata.uniform_usize_opt(&key("attention.head_count_kv"))?.unwrap_or(q_heads);
        let has = |name: &str| gguf.tensor(name).is_some();
        let vocab_size = match gguf.tensor("token_embd.weight") {
            Some(embedding) => embedding.shape[0],
            None => {
                let (file, name) = (gguf.file().to_owned(), "token_embd.weight".to_owned());
                return Err(Error::MissingTensor { file, name });
            }
        };
        let mlp_key = key("feed_forward_length");
        let eps_key = key("attention.layer_norm_rms_epsilon");
        let mut config = Self {
            name: metadata.str_opt("general.name")?.unwrap_or(architecture.name()).to_owned(),
            architecture,
            vocab_size,
            hidden,
            layers: metadata.usize(&key("block_count"))?,
            q_heads,
            kv_heads,
            head_dim: head_dim(metadata, &key, hidden, q_heads)?,
            mlp: metadata.uniform_usize_opt(&mlp_key)?.ok_or_else(|| metadata.missing(&mlp_key))?,
            norm_eps: metadata.f64_opt(&eps_key)?.ok_or_else(|| metadata.missing(&eps_key))? as f32,
            rope: RopeConfig { inv_freq: Vec::new(), attention_factor: 1.0 },
            max_positions: metadata.usize(&key("context_length"))?,
            tied: !has("output.weight"),
            qkv_bias: architecture == Architecture::Qwen2 || has("blk.0.attn_q.bias"),
            o_bias: has("blk.0.attn_output.bias"),
            qk_norm: architecture == Architecture::Qwen3,
            bos: metadata.u32_opt("tokenizer.ggml.bos_token_id")?,
            eos: metadata.u32_opt("tokenizer.ggml.eos_token_id")?.into_iter().collect(),
        };
        config.check(gguf.file(), &|what| key(field_name(what)))?;
        refuse_sliding_window(metadata, &key, config.max_positions)?;
        (config.rope, config.max_positions) = rope(gguf, &key, &config)?;
        Ok(config)
    }
}

fn refuse_unsupported(metadata: &Metadata, key: &dyn Fn(&str) -> String) -> Result<(), Error> {
    if let Some(count) = metadata.usize_opt(&key("expert_count"))?.filter(|count| 0 < *count) {
        return Err(metadata.unsupported(&key("expert_count"), count, "dense models (no experts)"));
    }
    for scale in UNKNOWN_SCALES {
        if let Some(value) = metadata.get(&key(scale)) {
            return Err(metadata.unsupported(&key(scale), value, "files without this field"));
        }
    }
    Ok(())
}

fn refuse_sliding_window(metadata: &Metadata, key: &dyn Fn(&str) -> String, max_positions: usize) -> Result<(), Error> {
    let field = key("attention.sliding_window");
    match metadata.uniform_usize_opt(&field)? {
        Some(window) if 0 < window && window < max_positions => {
            Err(metadata.unsupported(&field, window, format!("0, or at least the context length ({max_positions})")))
        }
        _ => Ok(()),
    }
}

fn head_dim(metadata: &Metadata, key: &dyn Fn(&str) -> String, hidden: usize, q_heads: usize) -> Result<usize, Error> {
    let head_dim = match metadata.usize_opt(&key("attention.key_length"))? {
        Some(given) => given,
        None if 0 < q_heads && hidden.is_multiple_of(q_heads) => hidden / q_heads,
        None => {
            let problem =
                format!("is {hidden}, not a multiple of the {q_heads} heads; attention.key_length is not given");
            return Err(metadata.wrong(&key("embedding_length"), problem));
        }
    };
    for other in ["attention.value_length", "rope.dimension_count"] {
        if let Some(value) = metadata.usize_opt(&key(other))?.filter(|value| *value != head_dim) {
            return Err(metadata.unsupported(&key(other), value, format!("{head_dim}, the width of a head")));
        }
    }
    Ok(head_dim)
}

/// The rotary embedding and the positions it is good for. The convention is llama.cpp's: see each arm.
fn rope(gguf: &Gguf, key: &dyn Fn(&str) -> String, config: &ModelConfig) -> Result<(RopeConfig, usize), Error> {
    let metadata = gguf.metadata();
    let theta = metadata.f64_opt(&key("rope.freq_base"))?.unwrap_or(10_000.0);
    let positive = |field: &str| match metadata.f64_opt(&key(field))? {
        Some(value) if !(value.is_finite() && 0.0 < value) => {
            Err(metadata.wrong(&key(field), format!("is {value}, expected a positive number")))
        }
        value => Ok(value),
    };
    let factor = match positive("rope.scaling.factor")? {
        Some(factor) => Some(factor),
        // What `rope.scaling.factor` was called until 2023.
        None => positive("rope.scale_linear")?,
    };
    let needed = || factor.ok_or_else(|| metadata.missing(&key("rope.scaling.factor")));
    let kind_key = key("rope.scaling.type");
    let mut max_positions = config.max_positions;
    let mut scaling = match metadata.str_opt(&kind_key)? {
        Some("none") => Scaling::Default,
        None => factor.map_or(Scaling::Default, |factor| Scaling::Linear { factor }),
        Some("linear") => Scaling::Linear { factor: needed()? },
        Some("yarn") => {
            let (factor, original) = (needed()?, positive("rope.scaling.original_context_length")?);
            let original = original.unwrap_or(config.max_positions as f64);
            max_positions = max_positions.max((factor * original) as usize).min(1 << 31);
            Scaling::Yarn(Yarn {
                factor,
                original,
                beta_fast: positive("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                beta_slow: positive("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                truncate: true,
                // The file's factor comes on top of the usual temperature.
                attention_factor: positive("rope.scaling.attn_factor")?.unwrap_or(1.0) * yarn_mscale(factor, 1.0),
            })
        }
        Some(other) => return Err(metadata.unsupported(&kind_key, other, "none, linear, yarn")),
    };
    let mut field = key("rope.scaling");
    if let Some(info) = gguf.tensor(crate::checkpoint::ROPE_FREQS) {
        if !matches!(scaling, Scaling::Default) {
            let what = "together with rope_freqs.weight";
            return Err(metadata.unsupported(&kind_key, what, "one of the two"));
        }
        scaling = Scaling::Divisors(match gguf.values(info) {
            TensorData::F32(divisors) => divisors.into_owned(),
            TensorData::Bf16(divisors) => divisors.iter().map(|divisor| divisor.to_f32()).collect(),
        });
        field = crate::checkpoint::ROPE_FREQS.to_owned();
    }
    let origin = Origin { file: gguf.file(), field: &field };
    Ok((RopeConfig::new(config.head_dim, theta, &scaling, &origin)?, max_positions))
}

/// Our name of a size to the one in the metadata, without the architecture's prefix.
fn field_name(what: &str) -> &str {
    match what {
        "hidden" => "embedding_length",
        "layers" => "block_count",
        "heads" => "attention.head_count",
        "kv_heads" => "attention.head_count_kv",
        "head_dim" => "attention.key_length",
        "mlp" => "feed_forward_length",
        "max_positions" => "context_length",
        "norm_eps" => "attention.layer_norm_rms_epsilon",
        same => same,
    }
}
