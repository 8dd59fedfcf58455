//! What a decode step reads of K, V and summaries: an algorithm's own arithmetic, for what answers say of themselves.
//!
//! Counted is what the kernels ask memory for, by whole vectors, codes and half-frames; not queries, lists or scratch.

use kv::geometry::ELEMENT_BYTES;
use kv::selection::Selected;
use kv::{Geometry, PAGE_TOKENS, Selection};

/// Bytes that a step reads of each thing, over all layers and KV heads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepReads {
    /// K and V of a token that is attended exactly.
    pub token_bytes: u64,
    /// The summaries of an Index unit, where pages are selected.
    pub unit_bytes: u64,
    /// What estimates a candidate page that was not selected.
    pub rest_page_bytes: u64,
}

impl StepReads {
    /// Of a model, from what one layer and KV head of it read of an Index unit and of an unselected page.
    pub(crate) fn new(geometry: Geometry, unit_bytes: usize, rest_page_bytes: usize) -> Self {
        let all = |bytes: usize| (geometry.layers * geometry.kv_heads * bytes) as u64;
        StepReads {
            token_bytes: all(2 * geometry.head_dim * ELEMENT_BYTES),
            unit_bytes: all(unit_bytes),
            rest_page_bytes: all(rest_page_bytes),
        }
    }

    /// Of a step at `len` tokens, the current one included.
    pub fn bytes(&self, selection: &Selection, len: usize) -> u64 {
        let exact = selection.exact_tokens(len) as u64 * self.token_bytes;
        match selection.at(len) {
            Selected::AllExact(_) => exact,
            Selected::Pages { sink, indexed, k } => {
                let units = (indexed * PAGE_TOKENS / selection.index_unit_tokens) as u64;
                exact + units * self.unit_bytes + (indexed - sink - k) as u64 * self.rest_page_bytes
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::Specs;
    use kv::Geometry;

    fn check(name: &str, len: usize, expected: u64) {
        let specs = Specs::of(Geometry { layers: 2, kv_heads: 3, head_dim: 64 });
        let spec = specs.get(specs.by_name(name).expect("a known algorithm"));
        assert_eq!(spec.reads.bytes(&spec.selection(), len), expected, "{name} at {len}");
    }

    #[test]
    fn a_step_reads_what_is_exact_and_the_summaries_of_what_is_indexed() {
        // Six heads; K and V of a token 256 bytes each, a mean key or value sum 128.
        check("dense", 4098, 6 * 4098 * 256);
        // Pages 0..508 are indexed and 8 selected: 106 tokens are exact, 499 pages are not.
        check("shadowkv", 4098, 6 * (106 * 256 + 508 * 128));
        check("shadowkv+estimate", 4098, 6 * (106 * 256 + 508 * 128 + 499 * 128));
        // 84 groups of 48 tokens, of 28 * 64 + 192 bytes each, are indexed and 8 pages selected: 138 tokens are exact.
        check("sketch", 4098, 6 * (138 * 256 + 84 * 1984));
        // Below min-context.
        check("sketch", 2047, 6 * 2047 * 256);
    }
}
