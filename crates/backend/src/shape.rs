//! What a runtime is sized for, and what it will take: plain data, resolved before anything is allocated.

use kv::Geometry;
use kv::bucketed_lru::Eviction;

/// Rotary position embedding, rotate-half form: element `i` pairs with `i + head_dim / 2`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// `head_dim / 2` inverse frequencies, any scaling already applied. Angles are `position * inv_freq` in f64.
    pub inv_freq: Vec<f64>,
    /// Multiplies cosine and sine (yarn); 1 otherwise.
    pub attention_factor: f32,
}

/// Everything a runtime's memory depends on.
#[derive(Clone, Debug, PartialEq)]
pub struct RuntimeShape {
    /// Layers, KV heads, head size.
    pub geometry: Geometry,
    /// Query heads; a multiple of `geometry.kv_heads`.
    pub q_heads: usize,
    /// Vocabulary size: the logits' width.
    pub vocab: usize,
    /// Rows of the pool.
    pub pool_rows: usize,
    /// Rows of host memory behind the pool; 0 keeps every page in the pool.
    pub dram_rows: usize,
    /// Which cached pages go first.
    pub eviction: Eviction,
    /// Sequences that can decode at once.
    pub max_lanes: usize,
    /// Longest sequence, in tokens.
    pub max_tokens: usize,
    /// Position embedding.
    pub rope: Rope,
}

/// A named share of the memory plan.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    /// What it is for, as printed in the plan.
    pub name: &'static str,
    /// Its most bytes.
    pub bytes: u64,
}

/// What `spindle info` prints of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// For example `cpu`.
    pub kind: &'static str,
    /// Processor, instruction set in use, threads.
    pub description: String,
}
