//! AVX-512: sixteen lanes in 512-bit registers, and dot products of bytes.
//!
//! Kernels of eight lanes run as under AVX2, with twice the registers.

// Loops over constant ranges unroll into registers; iterators over arrays of registers do not always.
#![allow(clippy::needless_range_loop)]

use super::avx2::Ymm;
use super::{Kernel, Lanes, SQRT_HALF_BITS};
use kv::geometry::SKETCH_TOKENS;
use std::arch::x86_64::*;

/// Eight lanes.
#[derive(Clone, Copy)]
struct Avx512;

impl Ymm for Avx512 {
    type Wide = Zmm;
}

/// Sixteen lanes.
#[derive(Clone, Copy)]
pub(super) struct Zmm;

/// Whether this machine has all of it.
pub(super) fn is_present() -> bool {
    super::avx2::is_present()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vbmi")
        && is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("gfni")
}

/// # Safety
/// `is_present`.
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,gfni")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx512>()
}

// SAFETY of every block below: the instruction set is present because kernels run inside `run` (the trait's contract),
// and pointers are in bounds by the methods' contracts.
impl Lanes for Zmm {
    const LANES: usize = 16;
    const FUSES: bool = true;

    type F = __m512;

    #[inline(always)]
    fn splat(x: f32) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn splat_eights(p: *const f32) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_mask_blend_ps(0xff00, _mm512_set1_ps(*p), _mm512_set1_ps(*p.add(1))) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m512) {
        // SAFETY: see the impl.
        unsafe { _mm512_storeu_ps(p, v) }
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())), 16)) }
    }

    #[inline(always)]
    unsafe fn load_bf16_even_odd(p: *const u16) -> (__m512, __m512) {
        // SAFETY: see the impl.
        unsafe {
            let x = _mm512_loadu_si512(p.cast());
            let odd = _mm512_and_si512(x, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            (_mm512_castsi512_ps(_mm512_slli_epi32(x, 16)), _mm512_castsi512_ps(odd))
        }
    }

    #[inline(always)]
    fn add(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    fn min(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_min_ps(a, b) }
    }

    #[inline(always)]
    fn max(a: __m512, b: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn abs(v: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_abs_ps(v) }
    }

    #[inline(always)]
    fn sum(v: __m512) -> f32 {
        let [a, b] = halves(v);
        Avx512::sum(Avx512::add(a, b))
    }

    #[inline(always)]
    fn largest(v: __m512) -> f32 {
        let [a, b] = halves(v);
        Avx512::largest(Avx512::max(a, b))
    }

    #[inline(always)]
    fn sums(v: [__m512; 8]) -> __m512 {
        in_order(sums_of_eights(v))
    }

    #[inline(always)]
    fn maxes(v: [__m512; 8]) -> __m512 {
        in_order(maxes_of_eights(v))
    }

    #[inline(always)]
    fn totals<const N: usize>(v: [__m512; N]) -> [f32; N] {
        let (mut out, mut n) = ([0.0; N], 0);
        // SAFETY: see the impl; sixteen or eight elements.
        unsafe {
            while n + 16 <= N {
                let mut quarters = [Self::splat(0.0); 4];
                for i in 0..4 {
                    let first = n + 4 * i;
                    quarters[i] = sums_of_quarters([v[first], v[first + 1], v[first + 2], v[first + 3]]);
                }
                let low = join_quarters(quarters[0], quarters[1]);
                let high = join_quarters(quarters[2], quarters[3]);
                let [a, b] = join_quarters(Self::add(low[0], low[1]), Self::add(high[0], high[1]));
                Self::store(out.as_mut_ptr().add(n), Self::add(a, b));
                n += 16;
            }
            if n < N {
                let mut eight = [Self::splat(0.0); 8];
                eight.copy_from_slice(&v[n..n + 8]);
                let eights = sums_of_eights(eight);
                let [a, b] = join_quarters(eights, eights);
                Avx512::store(out.as_mut_ptr().add(n), _mm512_castps512_ps256(Self::add(a, b)));
            }
        }
        out
    }

    #[inline(always)]
    fn largests(v: [__m512; 8]) -> [f32; 8] {
        let (mut out, eights) = ([0.0; 8], maxes_of_eights(v));
        let [a, b] = join_quarters(eights, eights);
        // SAFETY: see the impl.
        unsafe { Avx512::store(out.as_mut_ptr(), _mm512_castps512_ps256(Self::max(a, b))) };
        out
    }

    #[inline(always)]
    fn where_at_least(x: __m512, least: f32, v: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, _mm512_set1_ps(least), _CMP_GE_OQ), v) }
    }

    #[inline(always)]
    fn times_power(v: __m512, bits: __m512) -> __m512 {
        // SAFETY: see the impl.
        unsafe {
            let power = _mm512_slli_epi32(_mm512_castps_si512(bits), 23);
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(v), power))
        }
    }

    #[inline(always)]
    fn mantissa_exponent(x: __m512) -> (__m512, __m512) {
        // SAFETY: see the impl.
        unsafe {
            let bits = _mm512_castps_si512(x);
            let e = _mm512_srai_epi32(_mm512_sub_epi32(bits, _mm512_set1_epi32(SQRT_HALF_BITS)), 23);
            let m = _mm512_sub_epi32(bits, _mm512_slli_epi32(e, 23));
            (_mm512_castsi512_ps(m), _mm512_cvtepi32_ps(e))
        }
    }

    #[inline(always)]
    unsafe fn store_rounded_i8(p: *mut i8, v: [__m512; 4]) -> __m512 {
        // SAFETY: see the impl.
        unsafe {
            let (a, b) = integers(v);
            let bytes = transpose_quarters(_mm512_packs_epi16(a, b));
            _mm512_storeu_si512(p.cast(), bytes);
            _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(zero_bytes(), _mm512_set1_epi8(1), bytes))
        }
    }

    #[inline(always)]
    unsafe fn store_rounded_u8(p: *mut u8, v: [__m512; 4]) -> __m512 {
        // SAFETY: see the impl.
        unsafe {
            let (a, b) = integers(v);
            let bytes = transpose_quarters(_mm512_packus_epi16(a, b));
            _mm512_storeu_si512(p.cast(), bytes);
            _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(zero_bytes(), bytes, _mm512_set1_epi8(1)))
        }
    }

    #[inline(always)]
    unsafe fn code_sums<const H: usize>(rows: *const u8, weights: *const u8, row_bytes: usize) -> [__m512; H] {
        // Two chains a head: each of half of the dot products.
        let mut sums = [[zero_bytes(); 2]; H];
        for n in (0..row_bytes).step_by(16) {
            // SAFETY: see the impl.
            unsafe {
                let mut fours = [zero_bytes(); 4];
                for i in 0..4 {
                    fours[i] = four_rows(rows.add(4 * i * row_bytes + n), row_bytes);
                }
                let fours = transpose_in_quarters(fours);
                for i in 0..4 {
                    let codes = fields(fours[i]);
                    for h in 0..H {
                        for k in 0..4 {
                            let four = weights.add((4 * h + k) * row_bytes + n + 4 * i).cast::<i32>();
                            let four = _mm512_set1_epi32(four.read_unaligned());
                            sums[h][k % 2] = _mm512_dpbusd_epi32(sums[h][k % 2], codes[k], four);
                        }
                    }
                }
            }
        }
        let mut out = [Self::splat(0.0); H];
        for h in 0..H {
            // SAFETY: see the impl.
            out[h] = unsafe { _mm512_cvtepi32_ps(transpose_quarters(_mm512_add_epi32(sums[h][0], sums[h][1]))) };
        }
        out
    }

    #[inline(always)]
    unsafe fn add_codes<const H: usize>(
        rows: *const u8,
        row_bytes: usize,
        weights: [*const u8; H],
        units: [f32; H],
        sums: *mut f32,
    ) {
        for n in (0..row_bytes).step_by(16) {
            let mut acc = [[zero_bytes(); 4]; H];
            for row in (0..SKETCH_TOKENS).step_by(4) {
                // SAFETY: see the impl.
                unsafe {
                    let codes = fields(alternate(four_rows(rows.add(row * row_bytes + n), row_bytes)));
                    for h in 0..H {
                        let four = _mm512_set1_epi32(weights[h].add(row).cast::<i32>().read_unaligned());
                        for k in 0..4 {
                            acc[h][k] = _mm512_dpbusd_epi32(acc[h][k], four, codes[k]);
                        }
                    }
                }
            }
            for h in 0..H {
                for k in 0..4 {
                    // SAFETY: see the impl.
                    unsafe {
                        let sum = sums.add((4 * h + k) * row_bytes + n);
                        let product = _mm512_cvtepi32_ps(acc[h][k]);
                        Self::store(sum, Self::fma(product, Self::splat(units[h]), Self::load(sum)));
                    }
                }
            }
        }
    }

    #[inline(always)]
    fn prefetch(p: *const u8) {
        Avx512::prefetch(p);
    }

    #[inline(always)]
    fn prefetch_near(p: *const u8) {
        Avx512::prefetch_near(p);
    }
}

// SAFETY of every block below: the functions are called by the methods above, under their contracts.

/// Lanes 0 to 7, lanes 8 to 15.
#[inline(always)]
fn halves(v: __m512) -> [__m256; 2] {
    // SAFETY: see above.
    unsafe { [_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1)] }
}

/// Quarters 0 and 2 of a and of b, and quarters 1 and 3: what is left to be joined lane by lane.
#[inline(always)]
fn join_quarters(a: __m512, b: __m512) -> [__m512; 2] {
    // SAFETY: see above.
    unsafe { [_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd)] }
}

/// Element `e` of quarter `q` is what the elements of quarter `q` of `v[e]` come to.
macro_rules! of_quarters {
    ($name:ident, $op:ident) => {
        #[inline(always)]
        fn $name(v: [__m512; 4]) -> __m512 {
            // SAFETY: see above.
            unsafe {
                let [a, b, c, d] = v;
                let ab = _mm512_castps_pd($op(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
                let cd = _mm512_castps_pd($op(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d)));
                let (low, high) = (_mm512_unpacklo_pd(ab, cd), _mm512_unpackhi_pd(ab, cd));
                $op(_mm512_castpd_ps(low), _mm512_castpd_ps(high))
            }
        }
    };
}

of_quarters!(sums_of_quarters, _mm512_add_ps);
of_quarters!(maxes_of_quarters, _mm512_max_ps);

/// Of both eights of every vector: `[first of v[0..4] | second of v[0..4] | first of v[4..8] | second of v[4..8]]`.
#[inline(always)]
fn sums_of_eights(v: [__m512; 8]) -> __m512 {
    let [a, b] = join_quarters(sums_of_quarters([v[0], v[1], v[2], v[3]]), sums_of_quarters([v[4], v[5], v[6], v[7]]));
    Zmm::add(a, b)
}

/// Likewise.
#[inline(always)]
fn maxes_of_eights(v: [__m512; 8]) -> __m512 {
    let [a, b] =
        join_quarters(maxes_of_quarters([v[0], v[1], v[2], v[3]]), maxes_of_quarters([v[4], v[5], v[6], v[7]]));
    Zmm::max(a, b)
}

/// What `sums_of_eights` gives, first and second alternating.
#[inline(always)]
fn in_order(v: __m512) -> __m512 {
    // SAFETY: see above.
    unsafe { _mm512_permutexvar_ps(_mm512_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13, 10, 14, 11, 15), v) }
}

#[inline(always)]
fn zero_bytes() -> __m512i {
    // SAFETY: see above.
    unsafe { _mm512_setzero_si512() }
}

/// Rounded to i32, ties to even, and packed to i16: per quarter, four of `v[0]` and of `v[1]`, four of `v[2]` and of
/// `v[3]`. They must fit.
#[inline(always)]
fn integers(v: [__m512; 4]) -> (__m512i, __m512i) {
    // SAFETY: see above.
    unsafe {
        (
            _mm512_packs_epi32(_mm512_cvtps_epi32(v[0]), _mm512_cvtps_epi32(v[1])),
            _mm512_packs_epi32(_mm512_cvtps_epi32(v[2]), _mm512_cvtps_epi32(v[3])),
        )
    }
}

/// Quarters and their elements of 32 bits change roles: element `e` of quarter `q` becomes element `q` of quarter `e`.
#[inline(always)]
fn transpose_quarters(v: __m512i) -> __m512i {
    // SAFETY: see above.
    unsafe { _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15), v) }
}

/// In every quarter, vectors and elements of 32 bits change roles: element `e` of vector `i` becomes element `i` of
/// vector `e`.
#[inline(always)]
fn transpose_in_quarters(v: [__m512i; 4]) -> [__m512i; 4] {
    // SAFETY: see above.
    unsafe {
        let [a, b, c, d] = v;
        let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
        let (ab_high, cd_high) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
        [
            _mm512_unpacklo_epi64(ab, cd),
            _mm512_unpackhi_epi64(ab, cd),
            _mm512_unpacklo_epi64(ab_high, cd_high),
            _mm512_unpackhi_epi64(ab_high, cd_high),
        ]
    }
}

/// The four 2-bit fields of every byte, lowest first.
#[inline(always)]
fn fields(x: __m512i) -> [__m512i; 4] {
    /// A matrix of bits whose product with a byte is its bits `2 k` and `2 k + 1`, shifted down: row 7 - i (a byte,
    /// the lowest row first) picks bit i of the result.
    const fn field(k: usize) -> i64 {
        1 << (2 * k) << 56 | 1 << (2 * k + 1) << 48
    }
    // SAFETY: see above.
    unsafe {
        [
            _mm512_and_si512(x, _mm512_set1_epi8(3)),
            _mm512_gf2p8affine_epi64_epi8(x, _mm512_set1_epi64(field(1)), 0),
            _mm512_gf2p8affine_epi64_epi8(x, _mm512_set1_epi64(field(2)), 0),
            _mm512_gf2p8affine_epi64_epi8(x, _mm512_set1_epi64(field(3)), 0),
        ]
    }
}

/// Sixteen bytes of four rows, row by row.
///
/// # Safety
/// Sixteen bytes at `p` and at the next three multiples of `row_bytes`.
#[inline(always)]
unsafe fn four_rows(p: *const u8, row_bytes: usize) -> __m512i {
    // SAFETY: see above.
    unsafe {
        if row_bytes == 16 {
            return _mm512_loadu_si512(p.cast());
        }
        let mut rows = [_mm_setzero_si128(); 4];
        for i in 0..4 {
            rows[i] = _mm_loadu_si128(p.add(i * row_bytes).cast());
        }
        let low = _mm256_inserti128_si256(_mm256_castsi128_si256(rows[0]), rows[1], 1);
        let high = _mm256_inserti128_si256(_mm256_castsi128_si256(rows[2]), rows[3], 1);
        _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1)
    }
}

/// Bytes of four rows of sixteen, alternating.
#[inline(always)]
fn alternate(rows: __m512i) -> __m512i {
    const ORDER: [u8; 64] = {
        let (mut order, mut i) = ([0; 64], 0);
        while i < 64 {
            order[i] = (i % 4 * 16 + i / 4) as u8;
            i += 1;
        }
        order
    };
    // SAFETY: see above; 64 bytes.
    unsafe { _mm512_permutexvar_epi8(_mm512_loadu_si512(ORDER.as_ptr().cast()), rows) }
}
