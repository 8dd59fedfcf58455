//! Products of 2-bit codes in eight lanes: bytes by bytes to pairs of i16.

use super::Simd;
use kv::geometry::SKETCH_TOKENS;

/// See [`super::Lanes::code_sums`]; eight rows.
///
/// # Safety
/// As there.
#[inline(always)]
pub(super) unsafe fn code_sums<S: Simd, const H: usize>(
    rows: *const u8,
    weights: *const u8,
    row_bytes: usize,
) -> [S::F; H] {
    // SAFETY: by the caller's promise.
    unsafe {
        match row_bytes {
            16 => sums_of_16::<S, H>(rows, weights),
            _ => sums_of_32::<S, H>(rows, weights, row_bytes),
        }
    }
}

/// Two rows of 16 bytes a load.
///
/// # Safety
/// Codes are `[8][16]`, weights `[H][4][16]`.
#[inline(always)]
unsafe fn sums_of_16<S: Simd, const H: usize>(codes: *const u8, w8: *const u8) -> [S::F; H] {
    let mut pairs = [[S::splat_byte(0); 4]; H];
    for pair in 0..4 {
        // SAFETY: by the caller's promise.
        unsafe {
            let fields = S::fields(S::load_bytes(codes.add(2 * pair * 16)));
            for h in 0..H {
                let w8 = w8.add(h * 64);
                let mut sum = S::dot_pairs(fields[0], S::load_bytes_twice(w8));
                for k in 1..4 {
                    sum = S::add_i16(sum, S::dot_pairs(fields[k], S::load_bytes_twice(w8.add(16 * k))));
                }
                pairs[h][pair] = sum;
            }
        }
    }
    let mut out = [S::splat(0.0); H];
    for h in 0..H {
        // Each sum of eight i16, or of some of them, is at most 16 * 4 * 127 * 3 = 24,384.
        out[h] = S::half_sums_i16(pairs[h]);
    }
    out
}

/// The same for rows of whole 32 bytes.
///
/// # Safety
/// Codes are `[8][row_bytes]`, weights `[H][4][row_bytes]`.
#[inline(always)]
unsafe fn sums_of_32<S: Simd, const H: usize>(codes: *const u8, w8: *const u8, row_bytes: usize) -> [S::F; H] {
    let mut tokens = [[S::splat_byte(0); 8]; H];
    for t in 0..8 {
        let mut sums = [S::splat_byte(0); H];
        for n in (0..row_bytes).step_by(32) {
            // SAFETY: by the caller's promise.
            unsafe {
                let fields = S::fields(S::load_bytes(codes.add(t * row_bytes + n)));
                for h in 0..H {
                    let w8 = w8.add(h * 4 * row_bytes + n);
                    for k in 0..4 {
                        let product = S::dot_pairs(fields[k], S::load_bytes(w8.add(row_bytes * k)));
                        sums[h] = S::add_i16(sums[h], product);
                    }
                }
            }
        }
        for h in 0..H {
            tokens[h][t] = S::add_neighbours(sums[h]);
        }
    }
    let mut out = [S::splat(0.0); H];
    for h in 0..H {
        out[h] = S::sums_i32(tokens[h]);
    }
    out
}

/// See [`super::Lanes::add_codes`].
///
/// # Safety
/// As there.
#[inline(always)]
pub(super) unsafe fn add_codes<S: Simd, const H: usize>(
    rows: *const u8,
    row_bytes: usize,
    weights: [*const u8; H],
    units: [f32; H],
    sums: *mut f32,
) {
    // Sums of 24 pairs are at most 24 * 2 * 255 * 3 = 36,720.
    let zero = S::splat_byte(0);
    if row_bytes == 16 {
        let mut acc = [[zero; 4]; H];
        for pair in 0..SKETCH_TOKENS / 2 {
            // SAFETY: rows are `[48][16]`, weights `[48]`.
            unsafe {
                let codes = S::interleave_halves(S::load_bytes(rows.add(2 * pair * 16)));
                add_pair::<S, H>(codes, weights, pair, &mut acc);
            }
        }
        // SAFETY: sums are `[H][4][16]`.
        unsafe { store_sums::<S, H>(acc, units, sums, row_bytes, [0, 8]) };
        return;
    }
    for n in (0..row_bytes).step_by(32) {
        for half in 0..2 {
            let mut acc = [[zero; 4]; H];
            for pair in 0..SKETCH_TOKENS / 2 {
                // SAFETY: rows are `[48][row_bytes]`, weights `[48]`.
                unsafe {
                    let (a, b) = (rows.add(2 * pair * row_bytes + n), rows.add((2 * pair + 1) * row_bytes + n));
                    let codes = S::interleave(S::load_bytes(a), S::load_bytes(b))[half];
                    add_pair::<S, H>(codes, weights, pair, &mut acc);
                }
            }
            let at = [n + 8 * half, n + 8 * half + 16];
            // SAFETY: sums are `[H][4][row_bytes]`; `interleave` gives the first or last eight bytes of each half.
            unsafe { store_sums::<S, H>(acc, units, sums, row_bytes, at) };
        }
    }
}

/// Adds a pair of rows' alternating codes.
///
/// # Safety
/// Weights have the pair's.
#[inline(always)]
unsafe fn add_pair<S: Simd, const H: usize>(
    codes: S::I,
    weights: [*const u8; H],
    pair: usize,
    acc: &mut [[S::I; 4]; H],
) {
    let fields = S::fields(codes);
    for h in 0..H {
        // SAFETY: by the caller's promise.
        let w = unsafe { S::load_two_bytes(weights[h].add(2 * pair)) };
        for k in 0..4 {
            acc[h][k] = S::add_i16(acc[h][k], S::dot_pairs(w, fields[k]));
        }
    }
}

/// Adds the two eights of each accumulator, which stand for the bytes from `at` on.
///
/// # Safety
/// `sums` are `[H][4][row_bytes]`, and `at[i] + 8 <= row_bytes`.
#[inline(always)]
unsafe fn store_sums<S: Simd, const H: usize>(
    acc: [[S::I; 4]; H],
    units: [f32; H],
    sums: *mut f32,
    row_bytes: usize,
    at: [usize; 2],
) {
    for h in 0..H {
        let unit = S::splat(units[h]);
        for k in 0..4 {
            let eights = S::widen_u16(acc[h][k]);
            for i in 0..2 {
                // SAFETY: by the caller's promise.
                unsafe {
                    let sum = sums.add((4 * h + k) * row_bytes + at[i]);
                    S::store(sum, S::fma(eights[i], unit, S::load(sum)));
                }
            }
        }
    }
}
