//! Plain arrays of eight; the compiler vectorises them.

use super::Simd;

#[derive(Clone, Copy)]
pub(super) struct Portable;

#[inline(always)]
fn zip(a: [f32; 8], b: [f32; 8], f: impl Fn(f32, f32) -> f32) -> [f32; 8] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Simd for Portable {
    type F = [f32; 8];

    #[inline(always)]
    fn splat(x: f32) -> [f32; 8] {
        [x; 8]
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; 8] {
        // SAFETY: eight elements are in bounds, by the trait's contract.
        unsafe { p.cast::<[f32; 8]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: [f32; 8]) {
        // SAFETY: eight elements are in bounds, by the trait's contract.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> [f32; 8] {
        // SAFETY: eight elements are in bounds, by the trait's contract.
        let x = unsafe { p.cast::<[u16; 8]>().read_unaligned() };
        x.map(|b| f32::from_bits(u32::from(b) << 16))
    }

    #[inline(always)]
    unsafe fn load_bf16_even_odd(p: *const u16) -> ([f32; 8], [f32; 8]) {
        // SAFETY: sixteen elements are in bounds, by the trait's contract.
        let x = unsafe { p.cast::<[u16; 16]>().read_unaligned() };
        let at = |i: usize| f32::from_bits(u32::from(x[i]) << 16);
        (std::array::from_fn(|i| at(2 * i)), std::array::from_fn(|i| at(2 * i + 1)))
    }

    #[inline(always)]
    fn add(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        zip(a, b, |x, y| x + y)
    }

    #[inline(always)]
    fn sub(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        zip(a, b, |x, y| x - y)
    }

    #[inline(always)]
    fn mul(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        zip(a, b, |x, y| x * y)
    }

    #[inline(always)]
    fn max(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        zip(a, b, |x, y| if x > y { x } else { y })
    }

    #[inline(always)]
    fn fma(a: [f32; 8], b: [f32; 8], c: [f32; 8]) -> [f32; 8] {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    fn sum(v: [f32; 8]) -> f32 {
        ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]))
    }

    #[inline(always)]
    fn largest(v: [f32; 8]) -> f32 {
        v.into_iter().fold(v[0], |a, b| if b > a { b } else { a })
    }

    #[inline(always)]
    fn sums(v: [[f32; 8]; 8]) -> [f32; 8] {
        v.map(Self::sum)
    }

    #[inline(always)]
    fn exp(x: [f32; 8]) -> [f32; 8] {
        x.map(exp)
    }
}

/// The same polynomial and reduction as the AVX2 form.
#[inline(always)]
fn exp(x: f32) -> f32 {
    use super::exp_constants::*;
    if x < EXP_LEAST {
        return 0.0;
    }
    let x = if x > EXP_MOST { EXP_MOST } else { x };
    // Adding 1.5 * 2^23 rounds to the nearest integer in the low bits.
    let rounded = x * LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let mut p = EXP_C[0];
    for c in &EXP_C[1..] {
        p = p * r + c;
    }
    let scale = f32::from_bits(rounded.to_bits().wrapping_add(127) << 23);
    p * scale
}
