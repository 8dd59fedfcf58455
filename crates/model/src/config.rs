//! What a model is, resolved to plain data once, whichever file it came from.
//!
//! Everything here was checked when it was parsed: a `ModelConfig` that exists describes a decoder that this crate can
//! run. Nothing below reads a configuration file again.

mod gguf;
mod hugging_face;
mod rope;

use crate::Error;
pub use rope::RopeConfig;

/// Which family's conventions the files follow; the decoder itself is one, driven by [`ModelConfig`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// Llama, and what is the same decoder: SmolLM2, and Mistral when it comes as GGUF.
    Llama,
    /// Mistral without a sliding window.
    Mistral,
    /// Qwen2 and Qwen2.5: q, k and v have a bias.
    Qwen2,
    /// Qwen3: q and k are normalised per head.
    Qwen3,
}

impl Architecture {
    /// The name as Hugging Face's `model_type` spells it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Llama => "llama",
            Self::Mistral => "mistral",
            Self::Qwen2 => "qwen2",
            Self::Qwen3 => "qwen3",
        }
    }
}

/// One decoder-only model: sizes, conventions and special tokens.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelConfig {
    /// A name to show people: the folder's, or the GGUF file's `general.name`.
    pub name: String,
    /// The family.
    pub architecture: Architecture,
    /// Rows of the embedding and of the output matrix.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of decoder layers.
    pub layers: usize,
    /// Query heads per layer; a multiple of `kv_heads`.
    pub q_heads: usize,
    /// Key/value heads per layer.
    pub kv_heads: usize,
    /// Width of one head: a multiple of 16, at most 256. `q_heads * head_dim` need not equal `hidden`.
    pub head_dim: usize,
    /// Width of the gated MLP.
    pub mlp: usize,
    /// Epsilon of every RMS norm.
    pub norm_eps: f32,
    /// Rotary embedding, scaling already applied.
    pub rope: RopeConfig,
    /// Positions that the model was made for, in tokens; as its configuration says, or `factor * original` for YaRN
    /// where that is larger (Qwen's instructions leave `max_position_embeddings` at the unscaled length).
    pub max_positions: usize,
    /// The output matrix is the embedding matrix.
    pub tied: bool,
    /// q, k and v projections have a bias.
    pub qkv_bias: bool,
    /// The attention output projection has a bias.
    pub o_bias: bool,
    /// q and k pass an RMS norm over `head_dim` before the rotary embedding.
    pub qk_norm: bool,
    /// The token that begins a text, if the model has one.
    pub bos: Option<u32>,
    /// Tokens that end a text, as the model's configuration says (`generation_config.json` may add more).
    pub eos: Vec<u32>,
}

/// Sizes above these are taken for a damaged file: they bound every allocation made from a configuration.
const LIMITS: [(&str, usize); 5] =
    [("vocab_size", 1 << 24), ("hidden", 1 << 17), ("layers", 1 << 10), ("heads", 1 << 12), ("mlp", 1 << 20)];

/// The largest `head_dim` that the kernels take.
const HEAD_DIM_MAX: usize = 256;

impl ModelConfig {
    /// Query heads that share one key/value head.
    pub fn group(&self) -> usize {
        self.q_heads / self.kv_heads
    }

    /// Rejects sizes that contradict each other or that no kernel takes. `names` maps our names to the file's.
    fn check(&self, file: &str, names: &dyn Fn(&str) -> String) -> Result<(), Error> {
        let sizes = [self.vocab_size, self.hidden, self.layers, self.q_heads, self.mlp];
        for ((what, limit), size) in LIMITS.into_iter().zip(sizes) {
            if size < 1 || limit < size {
                return Err(Error::field(file, names(what), format!("is {size}, expected 1 to {limit}")));
            }
        }
        if self.kv_heads < 1 || !self.q_heads.is_multiple_of(self.kv_heads) {
            let problem = format!("is {}, expected a divisor of the {} attention heads", self.kv_heads, self.q_heads);
            return Err(Error::field(file, names("kv_heads"), problem));
        }
        if !(16..=HEAD_DIM_MAX).contains(&self.head_dim) || !self.head_dim.is_multiple_of(16) {
            let supported = format!("multiples of 16 up to {HEAD_DIM_MAX}");
            return Err(Error::unsupported(file, names("head_dim"), self.head_dim, supported));
        }
        if self.max_positions < 1 || (1 << 31) < self.max_positions {
            let problem = format!("is {}, expected 1 to 2^31", self.max_positions);
            return Err(Error::field(file, names("max_positions"), problem));
        }
        if !(self.norm_eps.is_finite() && 0.0 < self.norm_eps) {
            let problem = format!("is {}, expected a small positive number", self.norm_eps);
            return Err(Error::field(file, names("norm_eps"), problem));
        }
        Ok(())
    }
}
