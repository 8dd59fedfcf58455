//! What an Index op works on: token ranges of sequences, whichever way the caller named them.

use super::runtime::CpuRuntime;
use crate::{AlgorithmId, IndexUnits};
use kv::{PAGE_TOKENS, RowId};
use std::ops::Range;

/// Whole pages of one sequence.
pub(super) struct Span<'a> {
    /// KV row table.
    pub(super) kv_rows: &'a [RowId],
    /// Summary row table.
    pub(super) summary_rows: &'a [RowId],
    /// Pages to summarise.
    pub(super) pages: Range<usize>,
}

/// Calls `work` with the spans of `units`, empty ones left out.
pub(super) fn with_spans(
    rt: &CpuRuntime,
    algorithm: AlgorithmId,
    units: IndexUnits<'_>,
    work: impl FnOnce(&[Span<'_>]),
) {
    match units {
        IndexUnits::Rows { kv_rows, summary_rows, tokens: (first, end) } => {
            assert!(first <= end && first % PAGE_TOKENS == 0 && end % PAGE_TOKENS == 0, "pages of {first}..{end}");
            if first < end {
                work(&[Span { kv_rows, summary_rows, pages: first / PAGE_TOKENS..end / PAGE_TOKENS }]);
            }
        }
        IndexUnits::Lanes => {
            let lanes = rt.lanes();
            let spans: Vec<Span<'_>> = lanes
                .of(algorithm)
                .into_iter()
                .map(|(_, lane)| Span {
                    kv_rows: &lane.kv_rows,
                    summary_rows: &lane.summary_rows,
                    pages: lane.selection.indexed_pages(lane.len)..lane.selection.indexed_pages(lane.len + 1),
                })
                .filter(|span| !span.pages.is_empty())
                .collect();
            if !spans.is_empty() {
                work(&spans);
            }
        }
    }
}

/// The parts of `pages` that lie in one summary row each: `(span, summary row's position, pages)`.
pub(super) fn by_summary_row(spans: &[Span<'_>], row_pages: usize) -> Vec<(usize, usize, Range<usize>)> {
    let mut parts = Vec::new();
    for (i, span) in spans.iter().enumerate() {
        let mut first = span.pages.start;
        while first < span.pages.end {
            let row = first / row_pages;
            let end = span.pages.end.min((row + 1) * row_pages);
            parts.push((i, row, first..end));
            first = end;
        }
    }
    parts
}
