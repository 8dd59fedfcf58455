//! Scratch that one layer's ops hand to each other; allocated with the runtime, one region per active lane.

use super::array::Array;
use crate::{BackendError, MemoryUse, RuntimeShape};
use kv::{PAGE_TOKENS, geometry};

/// Pages of a list that `attend` works on as one split (invariant 3: splits lie at fixed list positions).
pub const SPLIT_PAGES: usize = 64;

/// The arrays; `i` is a lane's row in the step's buffers.
pub struct Workspace {
    /// `[lanes][q_heads][max_pages]`: page scores before `group_reduce`.
    pub page_scores: Array<f32>,
    /// `[lanes][kv_heads][max_pages]`: page scores after it.
    pub reduced: Array<f32>,
    /// `[lanes][q_heads][max_tokens]`: what `score_codes` keeps for `estimate`.
    pub token_logits: Array<f32>,
    /// `[lanes][q_heads][rotated_stride]`: rotated queries, each quarter padded as `score_codes` pads code rows.
    pub rotated_q: Array<f32>,
    /// `[lanes][kv_heads][max_pages]`: page entries.
    pub page_list: Array<u32>,
    /// `[lanes][kv_heads]`: entries of each list.
    pub page_list_len: Array<u32>,
    /// `[lanes][kv_heads][bitmap_words]`: bit `p % 32` of word `p / 32` is set where page `p` was selected.
    pub selected: Array<u32>,
    /// `[lanes][q_heads][max_splits][head_dim + 2]`: a split's output, then its log-sum-exp and one spare.
    pub splits: Array<f32>,
    /// Most pages of a sequence.
    pub max_pages: usize,
    /// Most tokens of a sequence, whole pages.
    pub max_tokens: usize,
    /// Words of one bitmap.
    pub bitmap_words: usize,
    /// Most splits of a list (of pages; estimates need no more).
    pub max_splits: usize,
    /// Elements of one rotated query: four quarters of whole 16, 32 or 64 bytes of codes.
    pub rotated_stride: usize,
}

/// Bytes of a code row of `head_dim / 4` bytes, padded to what the kernels read at once.
pub fn padded_row_bytes(head_dim: usize) -> usize {
    (head_dim / 4).next_power_of_two().max(16)
}

struct Sizes {
    max_pages: usize,
    bitmap_words: usize,
    max_splits: usize,
    page_scores: usize,
    reduced: usize,
    token_logits: usize,
    rotated_q: usize,
    rotated_stride: usize,
    selected: usize,
    splits: usize,
}

impl Sizes {
    fn of(shape: &RuntimeShape) -> Self {
        let max_pages = geometry::pages(shape.max_tokens + 1);
        let (bitmap_words, max_splits) = (max_pages.div_ceil(32), max_pages.div_ceil(SPLIT_PAGES));
        let (q, kv) = (shape.max_lanes * shape.q_heads, shape.max_lanes * shape.geometry.kv_heads);
        let rotated_stride = 4 * padded_row_bytes(shape.geometry.head_dim);
        Sizes {
            max_pages,
            bitmap_words,
            max_splits,
            page_scores: q * max_pages,
            reduced: kv * max_pages,
            token_logits: q * max_pages * PAGE_TOKENS,
            rotated_q: q * rotated_stride,
            rotated_stride,
            selected: kv * bitmap_words,
            splits: q * max_splits * (shape.geometry.head_dim + 2),
        }
    }
}

impl Workspace {
    /// Lines of the memory plan.
    pub fn plan(shape: &RuntimeShape) -> MemoryUse {
        let s = Sizes::of(shape);
        let elements = s.page_scores + 2 * s.reduced + s.token_logits + s.rotated_q + s.selected + s.splits;
        MemoryUse { name: "selection workspace", bytes: 4 * elements as u64 }
    }

    /// Allocates the arrays.
    ///
    /// # Errors
    /// No memory.
    pub fn new(shape: &RuntimeShape) -> Result<Self, BackendError> {
        let s = Sizes::of(shape);
        let what = "the selection workspace";
        Ok(Workspace {
            page_scores: Array::zeros(what, s.page_scores)?,
            reduced: Array::zeros(what, s.reduced)?,
            token_logits: Array::zeros(what, s.token_logits)?,
            rotated_q: Array::zeros(what, s.rotated_q)?,
            page_list: Array::zeros(what, s.reduced)?,
            page_list_len: Array::zeros(what, shape.max_lanes * shape.geometry.kv_heads)?,
            selected: Array::zeros(what, s.selected)?,
            splits: Array::zeros(what, s.splits)?,
            max_pages: s.max_pages,
            max_tokens: s.max_pages * PAGE_TOKENS,
            bitmap_words: s.bitmap_words,
            max_splits: s.max_splits,
            rotated_stride: s.rotated_stride,
        })
    }
}
