//! `config.json` of a Hugging Face folder.
//!
//! Defaults for absent fields are those of `transformers`' configuration class of the same `model_type`.
//! A field that would change the computation and that this decoder does not do is refused, never ignored.

use serde_json::{Map, Value};

use super::rope::{Origin, RopeConfig, Scaling, Yarn, yarn_mscale};
use super::{Architecture, ModelConfig};
use crate::Error;
use crate::json::Fields;

impl ModelConfig {
    /// Parses the text of a `config.json`. `file` names it in messages, `name` is the model's name for people.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it is not a JSON object, [`Error::Field`] for missing or impossible values,
    /// [`Error::Unsupported`] for what this decoder does not do.
    pub fn from_hugging_face(json: &[u8], file: &str, name: &str) -> Result<Self, Error> {
        let fields = Fields::parse(json, file)?;
        let architecture = architecture(&fields)?;
        refuse_unsupported(&fields, architecture)?;

        let hidden = fields.usize("hidden_size")?;
        let q_heads = fields.usize("num_attention_heads")?;
        let kv_heads = match (fields.usize_opt("num_key_value_heads")?, architecture) {
            (Some(heads), _) => heads,
            (None, Architecture::Llama) => q_heads,
            (None, _) => return Err(fields.missing("num_key_value_heads")),
        };
        let head_dim = match (fields.usize_opt("head_dim")?, architecture) {
            (Some(dim), _) => dim,
            (None, Architecture::Qwen3) => 128,
            (None, _) => derived_head_dim(&fields, hidden, q_heads)?,
        };
        let max_positions = fields.usize_opt("max_position_embeddings")?.unwrap_or(match architecture {
            Architecture::Llama => 2048,
            Architecture::Mistral => 131_072,
            Architecture::Qwen2 | Architecture::Qwen3 => 32_768,
        });
        let attention_bias = fields.bool_opt("attention_bias")?.unwrap_or(false);
        let mut config = Self {
            name: name.to_owned(),
            architecture,
            vocab_size: fields.usize("vocab_size")?,
            hidden,
            layers: fields.usize("num_hidden_layers")?,
            q_heads,
            kv_heads,
            head_dim,
            mlp: fields.usize("intermediate_size")?,
            norm_eps: fields.f64_opt("rms_norm_eps")?.unwrap_or(1e-6) as f32,
            rope: RopeConfig { inv_freq: Vec::new(), attention_factor: 1.0 },
            max_positions,
            tied: fields.bool_opt("tie_word_embeddings")?.unwrap_or(false),
            qkv_bias: architecture == Architecture::Qwen2 || attention_bias,
            o_bias: architecture != Architecture::Qwen2 && attention_bias,
            qk_norm: architecture == Architecture::Qwen3,
            bos: fields.token_ids("bos_token_id")?.first().copied(),
            eos: fields.token_ids("eos_token_id")?,
        };
        config.check(file, &|what| field_name(what).to_owned())?;
        refuse_sliding_window(&fields, &config)?;
        let (rope, max_positions) = rope(&fields, &config)?;
        (config.rope, config.max_positions) = (rope, max_positions);
        Ok(config)
    }
}

fn architecture(fields: &Fields) -> Result<Architecture, Error> {
    match fields.str("model_type")? {
        "llama" => Ok(Architecture::Llama),
        "mistral" => Ok(Architecture::Mistral),
        "qwen2" => Ok(Architecture::Qwen2),
        "qwen3" => Ok(Architecture::Qwen3),
        other => Err(fields.unsupported("model_type", other, "llama, mistral, qwen2, qwen3")),
    }
}

/// Everything that changes the computation, has a neutral value, and must have it.
fn refuse_unsupported(fields: &Fields, architecture: Architecture) -> Result<(), Error> {
    if let Some(config) = fields.get("quantization_config") {
        let method = config.get("quant_method").and_then(Value::as_str).unwrap_or("present").to_owned();
        return Err(fields.unsupported("quantization_config", method, "bf16, f16 or f32 weights, or a GGUF file"));
    }
    for experts in ["num_experts", "num_local_experts", "n_routed_experts"] {
        if let Some(count) = fields.usize_opt(experts)?.filter(|count| 0 < *count) {
            return Err(fields.unsupported(experts, count, "dense models (no experts)"));
        }
    }
    match fields.str_opt("hidden_act")? {
        None | Some("silu" | "swish") => {}
        Some(other) => return Err(fields.unsupported("hidden_act", other, "silu")),
    }
    let mut never = vec!["mlp_bias", "rope_interleaved", "add_cross_attention", "is_encoder_decoder"];
    if matches!(architecture, Architecture::Mistral | Architecture::Qwen2) {
        never.push("attention_bias");
    }
    for field in never {
        // `attention_bias` is a no-op key in some Qwen2 and Mistral configurations: false is fine, true is a
        // contradiction.
        if fields.bool_opt(field)? == Some(true) {
            return Err(fields.unsupported(field, true, format!("false for model_type {}", architecture.name())));
        }
    }
    if let Some(factor) = fields.f64_opt("partial_rotary_factor")?.filter(|factor| *factor != 1.0) {
        return Err(fields.unsupported("partial_rotary_factor", factor, "1 (every channel rotated)"));
    }
    Ok(())
}

/// A window that never cuts anything off is dense attention; a smaller one is another algorithm.
fn refuse_sliding_window(fields: &Fields, config: &ModelConfig) -> Result<(), Error> {
    let window = match config.architecture {
        Architecture::Llama => None,
        // transformers' MistralConfig has a window of 4096 unless the file says null.
        Architecture::Mistral if !fields.has("sliding_window") => Some(4096),
        Architecture::Mistral => fields.usize_opt("sliding_window")?,
        Architecture::Qwen2 | Architecture::Qwen3 => {
            let used = fields.bool_opt("use_sliding_window")?.unwrap_or(false);
            let from_layer = fields.usize_opt("max_window_layers")?.unwrap_or(0);
            let window = fields.usize_opt("sliding_window")?.unwrap_or(4096);
            (used && from_layer < config.layers).then_some(window)
        }
    };
    if let Some(window) = window.filter(|window| *window < config.max_positions) {
        let supported = format!("null, or at least max_position_embeddings ({})", config.max_positions);
        return Err(fields.unsupported("sliding_window", window, supported));
    }
    if let Some(kinds) = fields.get("layer_types").and_then(Value::as_array)
        && let Some(kind) = kinds.iter().find(|kind| kind.as_str() != Some("full_attention"))
        && window.is_none()
    {
        return Err(fields.unsupported("layer_types", kind, "full_attention in every layer"));
    }
    Ok(())
}

fn derived_head_dim(fields: &Fields, hidden: usize, q_heads: usize) -> Result<usize, Error> {
    if q_heads < 1 || !hidden.is_multiple_of(q_heads) {
        let problem = format!("is {hidden}, not a multiple of num_attention_heads ({q_heads}); head_dim is not given");
        return Err(fields.wrong("hidden_size", problem));
    }
    Ok(hidden / q_heads)
}

/// The rotary embedding and the positions it is good for. Reads `rope_parameters` (transformers 5) or `rope_scaling`.
fn rope(fields: &Fields, config: &ModelConfig) -> Result<(RopeConfig, usize), Error> {
    let empty = Map::new();
    let field = if fields.get("rope_parameters").is_some() { "rope_parameters" } else { "rope_scaling" };
    let object = match fields.get(field) {
        None => &empty,
        Some(Value::Object(object)) => object,
        Some(other) => return Err(fields.unsupported(field, other, "an object or null")),
    };
    if let Some((kind, _)) = object.iter().find(|(_, value)| value.is_object()) {
        return Err(fields.unsupported(field, format!("set per layer type ({kind})"), "one rope for all layers"));
    }
    let inner = Fields::new(object, fields.file()).within(field);
    let theta = match inner.f64_opt("rope_theta")? {
        Some(theta) => theta,
        None => fields.f64_opt("rope_theta")?.unwrap_or(10_000.0),
    };
    if let Some(factor) = inner.f64_opt("partial_rotary_factor")?.filter(|factor| *factor != 1.0) {
        return Err(inner.unsupported("partial_rotary_factor", factor, "1 (every channel rotated)"));
    }
    let kind = match inner.str_opt("rope_type")? {
        Some(kind) => kind,
        None => inner.str_opt("type")?.unwrap_or("default"),
    };
    let mut max_positions = config.max_positions;
    let scaling = match kind {
        "default" => Scaling::Default,
        "linear" => Scaling::Linear { factor: positive(&inner, "factor")? },
        "llama3" => Scaling::Llama3 {
            factor: positive(&inner, "factor")?,
            low_freq_factor: positive(&inner, "low_freq_factor")?,
            high_freq_factor: positive(&inner, "high_freq_factor")?,
            original: positive(&inner, "original_max_position_embeddings")?,
        },
        "yarn" => {
            let yarn = yarn(&inner, config.max_positions)?;
            max_positions = max_positions.max((yarn.factor * yarn.original) as usize);
            Scaling::Yarn(yarn)
        }
        other => {
            let key = if inner.has("rope_type") { "rope_type" } else { "type" };
            return Err(inner.unsupported(key, other, "default, linear, llama3, yarn"));
        }
    };
    let rope = RopeConfig::new(config.head_dim, theta, &scaling, &Origin { file: fields.file(), field })?;
    Ok((rope, max_positions.min(1 << 31)))
}

fn yarn(inner: &Fields, max_positions: usize) -> Result<Yarn, Error> {
    let factor = positive(inner, "factor")?;
    let original = match inner.has("original_max_position_embeddings") {
        true => positive(inner, "original_max_position_embeddings")?,
        false => max_positions as f64,
    };
    let optional = |field: &str| Ok::<_, Error>(inner.f64_opt(field)?.filter(|value| *value != 0.0));
    let attention_factor = match (inner.f64_opt("attention_factor")?, optional("mscale")?, optional("mscale_all_dim")?)
    {
        (Some(given), _, _) => given,
        (None, Some(mscale), Some(all_dim)) => yarn_mscale(factor, mscale) / yarn_mscale(factor, all_dim),
        (None, _, _) => yarn_mscale(factor, 1.0),
    };
    Ok(Yarn {
        factor,
        original,
        beta_fast: optional("beta_fast")?.unwrap_or(32.0),
        beta_slow: optional("beta_slow")?.unwrap_or(1.0),
        truncate: inner.bool_opt("truncate")?.unwrap_or(true),
        attention_factor,
    })
}

fn positive(fields: &Fields, field: &str) -> Result<f64, Error> {
    match fields.f64_opt(field)? {
        Some(value) if value.is_finite() && 0.0 < value => Ok(value),
        Some(value) => Err(fields.wrong(field, format!("is {value}, expected a positive number"))),
        None => Err(fields.missing(field)),
    }
}

/// Our name of a size to the name in `config.json`.
fn field_name(what: &str) -> &str {
    match what {
        "hidden" => "hidden_size",
        "layers" => "num_hidden_layers",
        "heads" => "num_attention_heads",
        "kv_heads" => "num_key_value_heads",
        "mlp" => "intermediate_size",
        "max_positions" => "max_position_embeddings",
        "norm_eps" => "rms_norm_eps",
        same => same,
    }
}
