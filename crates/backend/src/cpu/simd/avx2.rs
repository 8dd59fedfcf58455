//! AVX2 and FMA: eight lanes in 256-bit registers, for every instruction set that has them.

use super::{Kernel, Lanes, SQRT_HALF_BITS, Simd, codes};
use std::arch::x86_64::*;

/// An instruction set with AVX2 and FMA at least.
pub trait Ymm: Copy {
    /// The widest vectors that it has.
    type Wide: Lanes;
}

#[derive(Clone, Copy)]
pub(super) struct Avx2;

impl Ymm for Avx2 {
    type Wide = Self;
}

/// Whether this machine has it.
pub(super) fn is_present() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

/// # Safety
/// AVX2 and FMA are present.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx2>()
}

// SAFETY of every block below: the instruction set is present because kernels run inside `run` (the trait's contract),
// and pointers are in bounds by the methods' contracts.
impl<T: Ymm> Lanes for T {
    const LANES: usize = 8;
    const FUSES: bool = true;

    type F = __m256;

    #[inline(always)]
    fn splat(x: f32) -> __m256 {
        // SAFETY: see the impl.
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn splat_eights(p: *const f32) -> __m256 {
        // SAFETY: see the impl.
        unsafe { _mm256_broadcast_ss(&*p) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m256 {
        // SAFETY: see the impl.
        unsafe { _mm256_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m256) {
        // SAFETY: see the impl.
        unsafe { _mm256_storeu_ps(p, v) }
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> __m256 {
        // SAFETY: see the impl.
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())), 16)) }
    }

    #[inline(always)]
    unsafe fn load_bf16_even_odd(p: *const u16) -> (__m256, __m256) {
        // SAFETY: see the impl.
        unsafe {
            let x = _mm256_loadu_si256(p.cast());
            let odd = _mm256_and_si256(x, _mm256_set1_epi32(0xffff_0000_u32 as i32));
            (_mm256_castsi256_ps(_mm256_slli_epi32(x, 16)), _mm256_castsi256_ps(odd))
        }
    }

    #[inline(always)]
    fn add(a: __m256, b: __m256) -> __m256 {
        // SAFETY: see the impl.
        unsafe { _mm256_add_ps(a, b) }
    }

    #[inline(always)]
    fn sub(a: __m256, b: __m256) -> __m256 {
        // SAFETY: see the impl.
        unsafe { _mm256_sub_ps(a, b) }
    }

    #[inline(always)]
    fn mul(a: __m256, b: __m256) -> __m256 {
        // SAFETY: see the impl.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    fn min(a: __m256, b: __m256) -> __m256 {
        // SAFETY: see the impl.
        unsafe { _mm256_min_ps(a, b) }
    }

    #[inline(always)]
    fn max(a: __m256, b: __m256) -> __m256 {
        // SAFETY: see the impl.
        unsafe { _mm256_max_ps(a, b) }
    }

    #[inline(always)]
    fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: see the impl.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    fn abs(v: __m256) -> __m256 {
        // SAFETY: see the impl.
        unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), v) }
    }

    #[inline(always)]
    fn sum(v: __m256) -> f32 {
        // SAFETY: see the impl.
        unsafe {
            let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn largest(v: __m256) -> f32 {
        // SAFETY: see the impl.
        unsafe {
            let four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)))
        }
    }

    #[inline(always)]
    fn sums(v: [__m256; 8]) -> __m256 {
        // SAFETY: see the impl.
        unsafe {
            let a = _mm256_hadd_ps(_mm256_hadd_ps(v[0], v[1]), _mm256_hadd_ps(v[2], v[3]));
            let b = _mm256_hadd_ps(_mm256_hadd_ps(v[4], v[5]), _mm256_hadd_ps(v[6], v[7]));
            _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31))
        }
    }

    #[inline(always)]
    fn maxes(v: [__m256; 8]) -> __m256 {
        // SAFETY: see the impl.
        unsafe {
            let a = max_pairs(max_pairs(v[0], v[1]), max_pairs(v[2], v[3]));
            let b = max_pairs(max_pairs(v[4], v[5]), max_pairs(v[6], v[7]));
            _mm256_max_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31))
        }
    }

    #[inline(always)]
    fn totals<const N: usize>(v: [__m256; N]) -> [f32; N] {
        let mut out = [0.0; N];
        let (eights, _) = v.as_chunks::<8>();
        for (out, eight) in out.chunks_exact_mut(8).zip(eights) {
            // SAFETY: eight elements.
            unsafe { Self::store(out.as_mut_ptr(), Self::sums(*eight)) };
        }
        out
    }

    #[inline(always)]
    fn largests(v: [__m256; 8]) -> [f32; 8] {
        let mut out = [0.0; 8];
        // SAFETY: eight elements.
        unsafe { Self::store(out.as_mut_ptr(), Self::maxes(v)) };
        out
    }

    #[inline(always)]
    fn where_at_least(x: __m256, least: f32, v: __m256) -> __m256 {
        // SAFETY: see the impl.
        unsafe { _mm256_and_ps(v, _mm256_cmp_ps(x, _mm256_set1_ps(least), _CMP_GE_OQ)) }
    }

    #[inline(always)]
    fn times_power(v: __m256, bits: __m256) -> __m256 {
        // SAFETY: see the impl.
        unsafe {
            let power = _mm256_slli_epi32(_mm256_castps_si256(bits), 23);
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(v), power))
        }
    }

    #[inline(always)]
    fn mantissa_exponent(x: __m256) -> (__m256, __m256) {
        // SAFETY: see the impl.
        unsafe {
            let bits = _mm256_castps_si256(x);
            let e = _mm256_srai_epi32(_mm256_sub_epi32(bits, _mm256_set1_epi32(SQRT_HALF_BITS)), 23);
            let m = _mm256_sub_epi32(bits, _mm256_slli_epi32(e, 23));
            (_mm256_castsi256_ps(m), _mm256_cvtepi32_ps(e))
        }
    }

    #[inline(always)]
    unsafe fn store_rounded_i8(p: *mut i8, v: [__m256; 4]) -> __m256 {
        // SAFETY: see the impl.
        unsafe {
            let a = _mm256_packs_epi32(_mm256_cvtps_epi32(v[0]), _mm256_cvtps_epi32(v[1]));
            let b = _mm256_packs_epi32(_mm256_cvtps_epi32(v[2]), _mm256_cvtps_epi32(v[3]));
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            let bytes = _mm256_permutevar8x32_epi32(_mm256_packs_epi16(a, b), order);
            _mm256_storeu_si256(p.cast(), bytes);
            let pairs = _mm256_maddubs_epi16(_mm256_set1_epi8(1), bytes);
            _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }

    #[inline(always)]
    unsafe fn store_rounded_u8(p: *mut u8, v: [__m256; 4]) -> __m256 {
        // SAFETY: see the impl.
        unsafe {
            let a = _mm256_packs_epi32(_mm256_cvtps_epi32(v[0]), _mm256_cvtps_epi32(v[1]));
            let b = _mm256_packs_epi32(_mm256_cvtps_epi32(v[2]), _mm256_cvtps_epi32(v[3]));
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            let bytes = _mm256_permutevar8x32_epi32(_mm256_packus_epi16(a, b), order);
            _mm256_storeu_si256(p.cast(), bytes);
            let pairs = _mm256_maddubs_epi16(bytes, _mm256_set1_epi8(1));
            _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
        }
    }

    #[inline(always)]
    unsafe fn code_sums<const H: usize>(rows: *const u8, weights: *const u8, row_bytes: usize) -> [Self::F; H] {
        // SAFETY: the same contract.
        unsafe { codes::code_sums::<Self, H>(rows, weights, row_bytes) }
    }

    #[inline(always)]
    unsafe fn add_codes<const H: usize>(
        rows: *const u8,
        row_bytes: usize,
        weights: [*const u8; H],
        units: [f32; H],
        sums: *mut f32,
    ) {
        // SAFETY: the same contract.
        unsafe { codes::add_codes::<Self, H>(rows, row_bytes, weights, units, sums) }
    }

    #[inline(always)]
    fn prefetch(p: *const u8) {
        // Into L2: on Zen 4 that streams scattered pages at 20 GB/s a core, into L1 at 12, because fewer lines can be
        // on their way there.
        // SAFETY: see the impl; prefetching any address is harmless.
        unsafe { _mm_prefetch(p.cast(), _MM_HINT_T1) }
    }

    #[inline(always)]
    fn prefetch_near(p: *const u8) {
        // SAFETY: see the impl; prefetching any address is harmless.
        unsafe { _mm_prefetch(p.cast(), _MM_HINT_T0) }
    }
}

// SAFETY of every block: as above.
impl<T: Ymm> Simd for T {
    type Wide = T::Wide;

    #[inline(always)]
    fn div(a: __m256, b: __m256) -> __m256 {
        // SAFETY: see the impl.
        unsafe { _mm256_div_ps(a, b) }
    }

    #[inline(always)]
    fn transpose(v: [__m256; 8]) -> [__m256; 8] {
        // SAFETY: see the impl.
        unsafe {
            // Pairs of rows, then quadruples, inside each half of the registers; then the halves change places.
            let pair = |i: usize| (_mm256_unpacklo_ps(v[i], v[i + 1]), _mm256_unpackhi_ps(v[i], v[i + 1]));
            let ((a0, a1), (a2, a3), (a4, a5), (a6, a7)) = (pair(0), pair(2), pair(4), pair(6));
            let b = [
                _mm256_shuffle_ps(a0, a2, 0x44),
                _mm256_shuffle_ps(a0, a2, 0xee),
                _mm256_shuffle_ps(a1, a3, 0x44),
                _mm256_shuffle_ps(a1, a3, 0xee),
                _mm256_shuffle_ps(a4, a6, 0x44),
                _mm256_shuffle_ps(a4, a6, 0xee),
                _mm256_shuffle_ps(a5, a7, 0x44),
                _mm256_shuffle_ps(a5, a7, 0xee),
            ];
            [
                _mm256_permute2f128_ps(b[0], b[4], 0x20),
                _mm256_permute2f128_ps(b[1], b[5], 0x20),
                _mm256_permute2f128_ps(b[2], b[6], 0x20),
                _mm256_permute2f128_ps(b[3], b[7], 0x20),
                _mm256_permute2f128_ps(b[0], b[4], 0x31),
                _mm256_permute2f128_ps(b[1], b[5], 0x31),
                _mm256_permute2f128_ps(b[2], b[6], 0x31),
                _mm256_permute2f128_ps(b[3], b[7], 0x31),
            ]
        }
    }

    type I = __m256i;

    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> __m256i {
        // SAFETY: see the impl.
        unsafe { _mm256_loadu_si256(p.cast()) }
    }

    #[inline(always)]
    unsafe fn load_bytes_twice(p: *const u8) -> __m256i {
        // SAFETY: see the impl.
        unsafe { _mm256_broadcastsi128_si256(_mm_loadu_si128(p.cast())) }
    }

    #[inline(always)]
    fn fields(x: __m256i) -> [__m256i; 4] {
        // SAFETY: see the impl.
        unsafe {
            let mask = _mm256_set1_epi8(3);
            [
                _mm256_and_si256(x, mask),
                _mm256_and_si256(_mm256_srli_epi16(x, 2), mask),
                _mm256_and_si256(_mm256_srli_epi16(x, 4), mask),
                _mm256_and_si256(_mm256_srli_epi16(x, 6), mask),
            ]
        }
    }

    #[inline(always)]
    fn splat_byte(x: u8) -> __m256i {
        // SAFETY: see the impl.
        unsafe { _mm256_set1_epi8(x as i8) }
    }

    #[inline(always)]
    fn dot_pairs(unsigned: __m256i, signed: __m256i) -> __m256i {
        // SAFETY: see the impl.
        unsafe { _mm256_maddubs_epi16(unsigned, signed) }
    }

    #[inline(always)]
    fn add_i16(a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: see the impl.
        unsafe { _mm256_add_epi16(a, b) }
    }

    #[inline(always)]
    fn add_neighbours(a: __m256i) -> __m256i {
        // SAFETY: see the impl.
        unsafe { _mm256_madd_epi16(a, _mm256_set1_epi16(1)) }
    }

    #[inline(always)]
    fn half_sums_i16(v: [__m256i; 4]) -> __m256 {
        // SAFETY: see the impl.
        unsafe {
            // Packing keeps every sum: they fit.
            let ones = _mm256_set1_epi16(1);
            let a = _mm256_packs_epi32(_mm256_madd_epi16(v[0], ones), _mm256_madd_epi16(v[1], ones));
            let b = _mm256_packs_epi32(_mm256_madd_epi16(v[2], ones), _mm256_madd_epi16(v[3], ones));
            let s = _mm256_packs_epi32(_mm256_madd_epi16(a, ones), _mm256_madd_epi16(b, ones));
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            _mm256_cvtepi32_ps(_mm256_permutevar8x32_epi32(_mm256_madd_epi16(s, ones), order))
        }
    }

    #[inline(always)]
    fn sums_i32(v: [__m256i; 8]) -> __m256 {
        // SAFETY: see the impl.
        unsafe {
            let a = _mm256_hadd_epi32(_mm256_hadd_epi32(v[0], v[1]), _mm256_hadd_epi32(v[2], v[3]));
            let b = _mm256_hadd_epi32(_mm256_hadd_epi32(v[4], v[5]), _mm256_hadd_epi32(v[6], v[7]));
            let halves = (_mm256_permute2x128_si256(a, b, 0x20), _mm256_permute2x128_si256(a, b, 0x31));
            _mm256_cvtepi32_ps(_mm256_add_epi32(halves.0, halves.1))
        }
    }

    #[inline(always)]
    unsafe fn store_bytes(p: *mut u8, v: __m256i) {
        // SAFETY: see the impl.
        unsafe { _mm256_storeu_si256(p.cast(), v) }
    }

    #[inline(always)]
    unsafe fn load_two_bytes(p: *const u8) -> __m256i {
        // SAFETY: see the impl.
        unsafe { _mm256_set1_epi16(p.cast::<i16>().read_unaligned()) }
    }

    #[inline(always)]
    fn interleave_halves(v: __m256i) -> __m256i {
        // SAFETY: see the impl.
        unsafe {
            let v = _mm256_permute4x64_epi64(v, 0b11_01_10_00);
            let order = _mm256_setr_epi8(
                0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15, 0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7,
                15,
            );
            _mm256_shuffle_epi8(v, order)
        }
    }

    #[inline(always)]
    fn interleave(a: __m256i, b: __m256i) -> [__m256i; 2] {
        // SAFETY: see the impl.
        unsafe { [_mm256_unpacklo_epi8(a, b), _mm256_unpackhi_epi8(a, b)] }
    }

    #[inline(always)]
    fn widen_u16(v: __m256i) -> [__m256; 2] {
        // SAFETY: see the impl.
        unsafe {
            let first = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(v));
            let last = _mm256_cvtepu16_epi32(_mm256_extracti128_si256(v, 1));
            [_mm256_cvtepi32_ps(first), _mm256_cvtepi32_ps(last)]
        }
    }
}

/// Like `hadd`, with the larger instead of the sum: per 128 bits `[a0|a1, a2|a3, b0|b1, b2|b3]`.
#[inline(always)]
fn max_pairs(a: __m256, b: __m256) -> __m256 {
    // SAFETY: see the impl.
    unsafe { _mm256_max_ps(_mm256_shuffle_ps(a, b, 0x88), _mm256_shuffle_ps(a, b, 0xdd)) }
}
