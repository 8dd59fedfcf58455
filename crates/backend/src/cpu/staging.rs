//! Staging: K and V of one layer, contiguous, as prefill attention reads them; to rows and back.
//!
//! Layout, bf16: `[kv_heads][K or V][capacity tokens][head_dim]`.

use super::array::Array;
use super::runtime::CpuRuntime;
use crate::Buffer;
use kv::{PAGE_TOKENS, RowId};
use std::ops::Range;

/// A staging buffer's array and shape.
#[derive(Clone, Copy)]
pub(super) struct Staging<'a> {
    array: &'a Array<u16>,
    /// Tokens that it has room for.
    pub(super) capacity: usize,
    head_dim: usize,
}

impl<'a> Staging<'a> {
    pub(super) fn of(buffer: &'a Buffer, kv_heads: usize) -> Self {
        let array = buffer.downcast().expect("a staging buffer of this backend");
        Staging { array, capacity: buffer.rows() / (2 * kv_heads), head_dim: buffer.cols() }
    }

    fn range(&self, head: usize, half: usize, tokens: Range<usize>) -> Range<usize> {
        assert!(tokens.end <= self.capacity, "tokens {tokens:?} of a staging buffer of {}", self.capacity);
        let first = (2 * head + half) * self.capacity;
        (first + tokens.start) * self.head_dim..(first + tokens.end) * self.head_dim
    }

    /// Keys (`half` 0) or values (1) of tokens, to read: `[tokens][head_dim]`.
    pub(super) fn read(&self, head: usize, half: usize, tokens: Range<usize>) -> &'a [u16] {
        // SAFETY: whoever writes tokens has promised `write` that nobody reads them.
        unsafe { self.array.slice(self.range(head, half, tokens)) }
    }

    /// The same, to write.
    ///
    /// # Safety
    /// Nobody else reads or writes these tokens meanwhile.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn write(&self, head: usize, half: usize, tokens: Range<usize>) -> &'a mut [u16] {
        // SAFETY: by the caller's promise.
        unsafe { self.array.part(self.range(head, half, tokens)) }
    }
}

/// See [`crate::Runtime`].
pub(super) fn scatter_layer(rt: &CpuRuntime, staging: &Buffer, layer: usize, tokens: Range<usize>, kv_rows: &[RowId]) {
    let staging = Staging::of(staging, rt.shape.geometry.kv_heads);
    each_part(rt, tokens, kv_rows, |row, head, half, staged, in_frame| {
        // SAFETY: this task alone has this page, and a sequence's rows differ.
        let frame = unsafe { rt.frame_mut(row, layer, head) };
        frame[in_frame].copy_from_slice(staging.read(head, half, staged));
    });
}

/// See [`crate::Runtime`].
pub(super) fn gather_layer(rt: &CpuRuntime, staging: &Buffer, layer: usize, tokens: Range<usize>, kv_rows: &[RowId]) {
    let staging = Staging::of(staging, rt.shape.geometry.kv_heads);
    each_part(rt, tokens, kv_rows, |row, head, half, staged, in_frame| {
        // SAFETY: this task alone has these tokens.
        let target = unsafe { staging.write(head, half, staged) };
        target.copy_from_slice(&rt.frame(row, layer, head)[in_frame]);
    });
}

/// Calls `copy(row, head, half, tokens, elements of the frame)` for both halves of every page that `tokens` touch.
fn each_part(
    rt: &CpuRuntime,
    tokens: Range<usize>,
    kv_rows: &[RowId],
    copy: impl Fn(RowId, usize, usize, Range<usize>, Range<usize>) + Send + Sync,
) {
    let (heads, d) = (rt.shape.geometry.kv_heads, rt.shape.geometry.head_dim);
    let first_page = tokens.start / PAGE_TOKENS;
    let pages = kv::geometry::pages(tokens.end).saturating_sub(first_page);
    // Moving an element costs about as much as a multiply-add.
    rt.threads.each(pages, 2 * heads * tokens.len() * d, |i| {
        let page = first_page + i;
        let start = tokens.start.max(page * PAGE_TOKENS);
        let end = tokens.end.min((page + 1) * PAGE_TOKENS);
        for head in 0..heads {
            for half in 0..2 {
                let at = (half * PAGE_TOKENS + start % PAGE_TOKENS) * d;
                copy(kv_rows[page], head, half, start..end, at..at + (end - start) * d);
            }
        }
    });
}
