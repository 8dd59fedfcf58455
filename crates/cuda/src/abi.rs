//! What kernels see, field by field as in `kernels/runtime.cuh`; the sizes are checked when a runtime is made.

/// Algorithm numbers that lanes may have.
pub const ALGORITHMS_MAX: usize = 8;

/// Most likely tokens that a step can report.
pub const TOP_MAX: usize = 32;

/// Query heads of a KV head.
pub const GROUP_MAX: usize = 8;

/// Kinds of scheduled work.
pub const WORKS: usize = 3;

/// An address in device memory.
pub type Pointer = u64;

/// `View`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct ViewArgument {
    /// First row seen.
    pub data: Pointer,
    /// Elements of a row.
    pub cols: i32,
    /// 1 for bf16, 0 for f32.
    pub is_bf16: i32,
}

/// `Partial`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PartialArgument {
    /// `[rows][q_heads * head_dim]`
    pub output: Pointer,
    /// `[rows][q_heads]`
    pub lse: Pointer,
}

/// `Selection`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SelectionArgument {
    /// Tokens of an Index unit.
    pub unit: i32,
    /// Pages.
    pub sink_pages: i32,
    /// Pages.
    pub floor_pages: i32,
    /// Tokens.
    pub min_context: i32,
    /// Tokens.
    pub window: i64,
    /// Share.
    pub budget: f64,
}

/// `Sampling`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct SamplingArgument {
    /// See `backend::Sampling`.
    pub temperature: f32,
    /// Likewise.
    pub top_p: f32,
    /// Likewise.
    pub min_p: f32,
    /// Likewise.
    pub repetition: f32,
    /// Likewise.
    pub presence: f32,
    /// Likewise.
    pub frequency: f32,
    /// Likewise.
    pub top_k: i32,
    /// Likewise.
    pub top_count: i32,
    /// Likewise.
    pub min_tokens: i32,
    /// Likewise.
    pub choice: i32,
    /// Low half of the seed.
    pub seed_low: u32,
    /// High half.
    pub seed_high: u32,
    /// Whether occurrences are counted.
    pub penalised: i32,
    /// Whether the lane has biases.
    pub biased: i32,
    /// Whether the lane suppresses tokens.
    pub suppresses: i32,
    /// Makes the size a multiple of 8.
    pub reserved: i32,
}

/// `Lane`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct LaneArgument {
    /// Number of its algorithm.
    pub algorithm: i32,
    /// Tokens with K and V in rows.
    pub len: i32,
    /// The next step's input.
    pub token: i32,
    /// -1 for none.
    pub forced: i32,
    /// Tokens of the completion.
    pub generated: i32,
    /// Outputs to come that are prompt.
    pub prompt_outputs: i32,
    /// Whether a mask holds for the next choice.
    pub masked: i32,
    /// How many shares `mass` adds up.
    pub mass_count: i32,
    /// Which pages are selected.
    pub selection: SelectionArgument,
    /// How tokens are chosen.
    pub sampling: SamplingArgument,
    /// Sum of attention mass.
    pub mass: f64,
}

/// `LaneOutput`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct LaneOutputArgument {
    /// Whose.
    pub lane: i32,
    /// Chosen.
    pub token: i32,
    /// Its log-probability.
    pub logprob: f32,
    /// Tokens attended exactly.
    pub exact_tokens: i32,
    /// Mean attention mass; -1 where not measured.
    pub mass: f32,
    /// Selected pages of host memory that a slot held.
    pub hits: u32,
    /// Those that were fetched.
    pub misses: u32,
    /// Entries of the next two.
    pub top_count: i32,
    /// Most likely first.
    pub top_tokens: [i32; TOP_MAX],
    /// Their log-probabilities.
    pub top_logprobs: [f32; TOP_MAX],
}

/// `Runtime`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct RuntimeArgument {
    /// Layers.
    pub layers: i32,
    /// KV heads.
    pub kv_heads: i32,
    /// Query heads.
    pub q_heads: i32,
    /// Query heads of a KV head.
    pub group: i32,
    /// Elements of a head.
    pub head_dim: i32,
    /// Tokens of the vocabulary.
    pub vocab: i32,
    /// Lanes.
    pub max_lanes: i32,
    /// Pages of a sequence.
    pub max_pages: i32,
    /// Words of a page bitmap.
    pub bitmap_words: i32,
    /// Words of a token mask.
    pub mask_words: i32,
    /// Ints of a schedule.
    pub schedule_words: i32,
    /// Items that each kind of work is cut into, about.
    pub targets: [i32; WORKS],
    /// `max_pages * 8`
    pub max_tokens: i32,
    /// Positions of the cosine table.
    pub rope_positions: i32,
    /// Frames.
    pub pool: Pointer,
    /// Lanes.
    pub lanes: Pointer,
    /// KV row tables.
    pub kv_rows: Pointer,
    /// Summary row tables.
    pub summary_rows: Pointer,
    /// Active lanes, how many.
    pub n_active: Pointer,
    /// Active lanes.
    pub active: Pointer,
    /// Schedules.
    pub schedules: Pointer,
    /// Cosines and sines.
    pub rope: Pointer,
    /// Page scores of query heads.
    pub page_scores: Pointer,
    /// Page scores of KV heads.
    pub reduced: Pointer,
    /// Logits of coded tokens.
    pub token_logits: Pointer,
    /// Rotated queries.
    pub rotated_q: Pointer,
    /// Page lists.
    pub page_list: Pointer,
    /// Their lengths.
    pub page_list_len: Pointer,
    /// Selected pages, as bitmaps.
    pub selected: Pointer,
    /// Partials of parts.
    pub splits: Pointer,
    /// Parts of a head that are done.
    pub arrivals: Pointer,
    /// Occurrences.
    pub counts: Pointer,
    /// Biases.
    pub bias: Pointer,
    /// Suppressed tokens, as bitmaps.
    pub suppressed: Pointer,
    /// Token masks.
    pub mask: Pointer,
    /// Outputs of even and odd steps.
    pub output: Pointer,
    /// Number of the step in work.
    pub step: Pointer,
    /// Of `sample` and `score_tokens`.
    pub sample_scratch: Pointer,
    /// Host memory behind the pool.
    pub residency: ResidencyArgument,
}

/// `Residency`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct ResidencyArgument {
    /// Places for tags and ages.
    pub places: i32,
    /// Cache rows of a lane.
    pub max_cache_rows: i32,
    /// 0 by age, 1 by score, 2 by fading score.
    pub eviction: i32,
    /// Groups of a lane's slots.
    pub max_groups: i32,
    /// `Cache` of each lane.
    pub caches: Pointer,
    /// Cache rows of each lane.
    pub cache_rows: Pointer,
    /// Where their tags and ages are.
    pub groups: Pointer,
    /// What frames hold.
    pub tags: Pointer,
    /// Since when.
    pub ages: Pointer,
    /// What a layer lacks.
    pub fetches: Pointer,
    /// How much of it.
    pub fetch_count: Pointer,
    /// Rows of host memory.
    pub host: Pointer,
}

/// `Units`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct UnitsArgument {
    /// Zero for lanes.
    pub kv_rows: Pointer,
    /// Likewise.
    pub summary_rows: Pointer,
    /// First page.
    pub first: i32,
    /// One past the last page.
    pub end: i32,
    /// Of the lanes.
    pub algorithm: i32,
}
