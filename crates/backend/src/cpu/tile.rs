//! The register tile that matrix products and prefill attention share.

// Loops over constant ranges unroll into registers; iterators over arrays of registers do not always.
#![allow(clippy::needless_range_loop)]

use super::simd::Simd;

/// Rows of a register tile: with 16 columns, 12 accumulators of eight lanes, enough to hide the latency of a fused
/// multiply-add (4 cycles, 2 a cycle), beside two registers of the panel and one of the row.
pub(super) const TILE_ROWS: usize = 6;

/// `acc[r][c] += sum over i of a[r * stride + i] * b[i * 16 + c]`, one chain per element, `i` ascending.
///
/// # Safety
/// `a` has `R` rows of `k` elements at `stride`; `b` is `[k][16]`; the instruction set is present.
#[inline(always)]
pub(super) unsafe fn tile<S: Simd, const R: usize>(
    k: usize,
    a: *const f32,
    stride: usize,
    b: *const f32,
    acc: &mut [[S::F; 2]; R],
) {
    let mut sums = *acc;
    for i in 0..k {
        // SAFETY: by the caller's promise.
        let (low, high) = unsafe { (S::load(b.add(16 * i)), S::load(b.add(16 * i + 8))) };
        for r in 0..R {
            // SAFETY: by the caller's promise.
            let x = S::splat(unsafe { *a.add(r * stride + i) });
            sums[r] = [S::fma(x, low, sums[r][0]), S::fma(x, high, sums[r][1])];
        }
    }
    *acc = sums;
}

/// Rows of part `i` when `rows` rows are cut into `parts` parts that differ by one at most: first row and count.
pub(super) fn even_part(rows: usize, parts: usize, i: usize) -> (usize, usize) {
    let (each, more) = (rows / parts, rows % parts);
    (i * each + i.min(more), each + usize::from(i < more))
}
