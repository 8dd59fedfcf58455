//! Selections that are made up, for measurements with random weights, whose own selections mean nothing.

use super::runtime::CpuRuntime;
use crate::AlgorithmId;
use crate::made_up::MadeUp;
use kv::selection::Selected;
use kv::{PAGE_TOKENS, PageEntry};

/// See [`crate::Runtime`].
pub(super) fn made_up_selection(rt: &CpuRuntime, algorithm: AlgorithmId, layer: usize, overlap: f32) {
    let lanes = rt.lanes();
    let (heads, work) = (rt.shape.geometry.kv_heads, &rt.work);
    for (i, lane) in lanes.of(algorithm) {
        let Selected::Pages { sink, indexed, k } = lane.selection.at(lane.len) else { continue };
        for head in 0..heads {
            let at = i * heads + head;
            // SAFETY: one task; nobody else reads or writes this head's bitmap and list.
            let (bitmap, list) = unsafe {
                (
                    work.selected.part(at * work.bitmap_words..(at + 1) * work.bitmap_words),
                    work.page_list.part(at * work.max_pages..(at + 1) * work.max_pages),
                )
            };
            bitmap.fill(0);
            let made_up = MadeUp { lane: lanes.active[i].0, layer, head, overlap, budget: lane.selection.budget };
            for n in 0..k {
                let page = made_up.page(n, k, sink, indexed, lane.len);
                bitmap[page / 32] |= 1 << (page % 32);
                list[sink + n] = PageEntry::new(lane.kv_rows[page], 0, PAGE_TOKENS).0;
            }
        }
    }
}
