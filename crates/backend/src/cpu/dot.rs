//! Dot products of f32 queries with eight bf16 vectors at once.

use super::simd::Simd;

/// Splits a vector as `load_bf16_even_odd` does: of every 16 elements, the eight at even places, then the odd ones.
/// `x` and `out` have the same length, a multiple of 16.
pub(super) fn even_odd(x: &[f32], out: &mut [f32]) {
    assert_eq!(x.len(), out.len());
    for (x, out) in x.chunks_exact(16).zip(out.chunks_exact_mut(16)) {
        for i in 0..8 {
            (out[i], out[8 + i]) = (x[2 * i], x[2 * i + 1]);
        }
    }
}

/// Lane `j` of result `h` is the product of query `h` with vector `j`: one chain of multiply-adds for every eighth
/// element (of 16, the even ones first), the eight chains added as [`super::simd::Lanes::sum`] does.
///
/// # Safety
/// `q[h]` points to `d` elements in the order of [`even_odd`]; eight vectors of `d` elements (a multiple of 16) start
/// at `vectors`, `stride` apart.
#[inline(always)]
pub(super) unsafe fn dots_of_eight<S: Simd, const H: usize>(
    q: [*const f32; H],
    vectors: *const u16,
    stride: usize,
    d: usize,
) -> [S::F; H] {
    let mut chains = [[S::splat(0.0); 8]; H];
    for j in 0..8 {
        let mut acc = [S::splat(0.0); H];
        for c in 0..d / 16 {
            // SAFETY: in bounds by the caller's promise.
            unsafe {
                let (even, odd) = S::load_bf16_even_odd(vectors.add(j * stride + 16 * c));
                for h in 0..H {
                    acc[h] = S::fma(even, S::load(q[h].add(16 * c)), acc[h]);
                    acc[h] = S::fma(odd, S::load(q[h].add(16 * c + 8)), acc[h]);
                }
            }
        }
        for h in 0..H {
            chains[h][j] = acc[h];
        }
    }
    let mut out = [S::splat(0.0); H];
    for h in 0..H {
        out[h] = S::sums(chains[h]);
    }
    out
}
