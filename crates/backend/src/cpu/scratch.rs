//! Memory of one thread that an op's task works in; kept for the next task.

use std::cell::Cell;

#[derive(Clone, Copy)]
#[repr(align(64))]
struct Line {
    #[allow(dead_code, reason = "read and written through the slice that `with` makes of the lines")]
    elements: [f32; 16],
}

thread_local! {
    static LINES: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// Calls `work` with `len` elements of scratch on a cache line's border, whatever they held before.
pub(super) fn with<R>(len: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    let mut lines = LINES.take();
    let count = len.div_ceil(16);
    if lines.len() < count {
        lines.resize(count, Line { elements: [0.0; 16] });
    }
    // SAFETY: `count` lines of sixteen f32 each, exclusive while `lines` is.
    let elements = unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast::<f32>(), len) };
    let result = work(elements);
    LINES.set(lines);
    result
}

/// Cuts `len` elements, rounded up to whole cache lines, off the front of scratch.
pub(super) fn cut<'a>(rest: &mut &'a mut [f32], len: usize) -> &'a mut [f32] {
    let (front, back) = std::mem::take(rest).split_at_mut(len.next_multiple_of(16));
    *rest = back;
    &mut front[..len]
}
