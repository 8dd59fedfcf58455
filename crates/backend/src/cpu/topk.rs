//! The page list of a step: selected pages with the exact ones around them, ascending.

use super::runtime::CpuRuntime;
use crate::AlgorithmId;
use kv::selection::Selected;
use kv::{PAGE_TOKENS, PageEntry, RowId, geometry};
use std::cell::RefCell;
use std::ops::Range;

thread_local! {
    /// Keys of the candidates that may be selected.
    static KEYS: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// See [`crate::Runtime`].
pub(super) fn topk(rt: &CpuRuntime, algorithm: AlgorithmId) {
    let lanes = rt.lanes();
    let lanes = lanes.of(algorithm);
    let (heads, work) = (rt.shape.geometry.kv_heads, &rt.work);
    let cost = lanes.iter().map(|(_, lane)| 8 * heads * geometry::pages(lane.len)).sum();
    rt.threads.each(lanes.len() * heads, cost, |task| {
        let ((i, lane), head) = (&lanes[task / heads], task % heads);
        let at = i * heads + head;
        // SAFETY: this task alone writes this head's bitmap, list and length.
        let (bitmap, list, len) = unsafe {
            (
                work.selected.part(at * work.bitmap_words..(at + 1) * work.bitmap_words),
                work.page_list.part(at * work.max_pages..(at + 1) * work.max_pages),
                &mut work.page_list_len.part(at..at + 1)[0],
            )
        };
        bitmap.fill(0);
        let candidates = match lane.selection.at(lane.len) {
            Selected::AllExact(_) => 0..0,
            Selected::Pages { sink, indexed, k } => {
                let first = at * work.max_pages;
                let scores = &work.reduced.all()[first + sink..first + indexed];
                KEYS.with_borrow_mut(|keys| select(scores, sink, k, keys, bitmap));
                sink..indexed
            }
        };
        *len = write_list(list, &lane.kv_rows, lane.len, candidates, bitmap);
    });
}

/// Sets the bits of the `k` best pages: score descending (in the total order of f32), page ascending.
/// `scores[j]` is page `first + j`'s.
fn select(scores: &[f32], first: usize, k: usize, keys: &mut Vec<u64>, bitmap: &mut [u32]) {
    keys.clear();
    keys.extend(scores.iter().enumerate().map(|(j, score)| key(*score, first + j)));
    if k < keys.len() {
        keys.select_nth_unstable(k);
    }
    for key in &keys[..k] {
        let page = *key as u32 as usize;
        bitmap[page / 32] |= 1 << (page % 32);
    }
}

/// Ascends where the score descends, then with the page.
fn key(score: f32, page: usize) -> u64 {
    let bits = score.to_bits();
    // Bits of a negative number ascend as it descends; those of a positive one are turned round below them.
    let descending = if bits >> 31 == 1 { bits } else { !bits & 0x7fff_ffff };
    u64::from(descending) << 32 | page as u64
}

/// Writes the entries of every page outside `candidates` and of every selected one inside; returns how many.
fn write_list(list: &mut [u32], kv_rows: &[RowId], len: usize, candidates: Range<usize>, bitmap: &[u32]) -> u32 {
    let pages = geometry::pages(len);
    let mut count = 0;
    let mut push = |page: usize| {
        let tokens = PAGE_TOKENS.min(len - page * PAGE_TOKENS);
        list[count] = PageEntry::new(kv_rows[page], 0, tokens).0;
        count += 1;
    };
    (0..candidates.start).for_each(&mut push);
    for word in candidates.start / 32..candidates.end.div_ceil(32) {
        let mut bits = bitmap[word];
        while bits != 0 {
            push(32 * word + bits.trailing_zeros() as usize);
            bits &= bits - 1;
        }
    }
    (candidates.end..pages).for_each(&mut push);
    count as u32
}
