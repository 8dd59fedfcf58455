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
    fn div(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        zip(a, b, |x, y| x / y)
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
    fn transpose(v: [[f32; 8]; 8]) -> [[f32; 8]; 8] {
        std::array::from_fn(|i| std::array::from_fn(|j| v[j][i]))
    }

    #[inline(always)]
    fn sums(v: [[f32; 8]; 8]) -> [f32; 8] {
        v.map(Self::sum)
    }

    #[inline(always)]
    fn exp(x: [f32; 8]) -> [f32; 8] {
        x.map(exp)
    }

    type I = [u8; 32];

    #[inline(always)]
    fn weight(x: [f32; 8]) -> [f32; 8] {
        x.map(weight)
    }

    #[inline(always)]
    fn abs(v: [f32; 8]) -> [f32; 8] {
        v.map(f32::abs)
    }

    #[inline(always)]
    fn ln(x: [f32; 8]) -> [f32; 8] {
        x.map(ln)
    }

    #[inline(always)]
    fn maxes(v: [[f32; 8]; 8]) -> [f32; 8] {
        v.map(Self::largest)
    }

    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> [u8; 32] {
        // SAFETY: 32 bytes are in bounds, by the trait's contract.
        unsafe { p.cast::<[u8; 32]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_bytes_twice(p: *const u8) -> [u8; 32] {
        // SAFETY: sixteen bytes are in bounds, by the trait's contract.
        let x = unsafe { p.cast::<[u8; 16]>().read_unaligned() };
        std::array::from_fn(|i| x[i % 16])
    }

    #[inline(always)]
    fn fields(x: [u8; 32]) -> [[u8; 32]; 4] {
        std::array::from_fn(|k| x.map(|b| b >> (2 * k) & 3))
    }

    #[inline(always)]
    fn splat_byte(x: u8) -> [u8; 32] {
        [x; 32]
    }

    #[inline(always)]
    fn dot_pairs(unsigned: [u8; 32], signed: [u8; 32]) -> [u8; 32] {
        let product = |i: usize| i16::from(unsigned[i]) * i16::from(signed[i] as i8);
        of_i16(std::array::from_fn(|i| product(2 * i) + product(2 * i + 1)))
    }

    #[inline(always)]
    fn add_i16(a: [u8; 32], b: [u8; 32]) -> [u8; 32] {
        let (a, b) = (to_i16(a), to_i16(b));
        of_i16(std::array::from_fn(|i| a[i].wrapping_add(b[i])))
    }

    #[inline(always)]
    fn add_neighbours(a: [u8; 32]) -> [u8; 32] {
        let a = to_i16(a);
        of_i32(std::array::from_fn(|i| i32::from(a[2 * i]) + i32::from(a[2 * i + 1])))
    }

    #[inline(always)]
    fn half_sums_i16(v: [[u8; 32]; 4]) -> [f32; 8] {
        let v = v.map(to_i16);
        std::array::from_fn(|i| f32::from(v[i / 2][8 * (i % 2)..][..8].iter().sum::<i16>()))
    }

    #[inline(always)]
    fn sums_i32(v: [[u8; 32]; 8]) -> [f32; 8] {
        v.map(|v| to_i32(v).iter().sum::<i32>() as f32)
    }

    #[inline(always)]
    unsafe fn store_rounded_i8(p: *mut i8, v: [[f32; 8]; 4]) {
        let bytes: [i8; 32] = std::array::from_fn(|i| v[i / 8][i % 8].round_ties_even() as i8);
        // SAFETY: 32 bytes are in bounds, by the trait's contract.
        unsafe { p.cast::<[i8; 32]>().write_unaligned(bytes) }
    }

    #[inline(always)]
    unsafe fn store_bytes(p: *mut u8, v: [u8; 32]) {
        // SAFETY: 32 bytes are in bounds, by the trait's contract.
        unsafe { p.cast::<[u8; 32]>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn load_two_bytes(p: *const u8) -> [u8; 32] {
        // SAFETY: two bytes are in bounds, by the trait's contract.
        let x = unsafe { p.cast::<[u8; 2]>().read_unaligned() };
        std::array::from_fn(|i| x[i % 2])
    }

    #[inline(always)]
    fn interleave_halves(v: [u8; 32]) -> [u8; 32] {
        std::array::from_fn(|i| v[i / 2 + 16 * (i % 2)])
    }

    #[inline(always)]
    fn interleave(a: [u8; 32], b: [u8; 32]) -> [[u8; 32]; 2] {
        let at = |i: usize, start: usize| if i.is_multiple_of(2) { a } else { b }[i / 16 * 16 + start + i % 16 / 2];
        [std::array::from_fn(|i| at(i, 0)), std::array::from_fn(|i| at(i, 8))]
    }

    #[inline(always)]
    fn round(v: [f32; 8]) -> [f32; 8] {
        // Adding and taking away 1.5 * 2^23 rounds to the nearest integer.
        v.map(|x| x + 12_582_912.0 - 12_582_912.0)
    }

    #[inline(always)]
    unsafe fn store_u8(p: *mut u8, v: [[f32; 8]; 4]) {
        let bytes: [u8; 32] = std::array::from_fn(|i| v[i / 8][i % 8] as u8);
        // SAFETY: 32 bytes are in bounds, by the trait's contract.
        unsafe { p.cast::<[u8; 32]>().write_unaligned(bytes) }
    }

    #[inline(always)]
    fn widen_u16(v: [u8; 32]) -> [[f32; 8]; 2] {
        let at = |i: usize| f32::from(u16::from_le_bytes([v[2 * i], v[2 * i + 1]]));
        [std::array::from_fn(at), std::array::from_fn(|i| at(i + 8))]
    }

    #[inline(always)]
    fn prefetch(_p: *const u8) {}
}

#[inline(always)]
fn to_i16(x: [u8; 32]) -> [i16; 16] {
    std::array::from_fn(|i| i16::from_le_bytes([x[2 * i], x[2 * i + 1]]))
}

#[inline(always)]
fn of_i16(x: [i16; 16]) -> [u8; 32] {
    std::array::from_fn(|i| x[i / 2].to_le_bytes()[i % 2])
}

#[inline(always)]
fn to_i32(x: [u8; 32]) -> [i32; 8] {
    std::array::from_fn(|i| i32::from_le_bytes([x[4 * i], x[4 * i + 1], x[4 * i + 2], x[4 * i + 3]]))
}

#[inline(always)]
fn of_i32(x: [i32; 8]) -> [u8; 32] {
    std::array::from_fn(|i| x[i / 4].to_le_bytes()[i % 4])
}

/// The same polynomial and reduction as the AVX2 form.
#[inline(always)]
fn ln(x: f32) -> f32 {
    use super::exp_constants::{LN2_HIGH, LN2_LOW};
    use super::ln_constants::*;
    let bits = x.to_bits() as i32;
    let e = (bits - SQRT_HALF_BITS) >> 23;
    let f = f32::from_bits((bits - (e << 23)) as u32) - 1.0;
    let (z, e) = (f * f, e as f32);
    let mut p = LN_C[0];
    for c in &LN_C[1..] {
        p = p * f + c;
    }
    let y = f * z * p + e * LN2_LOW - 0.5 * z;
    e * LN2_HIGH + (f + y)
}

/// The same polynomial as the AVX2 form; the reduction in two steps, because nothing is fused.
#[inline(always)]
fn weight(x: f32) -> f32 {
    use super::exp_constants::*;
    let x = if x > WEIGHT_LEAST { x } else { WEIGHT_LEAST };
    let rounded = x * LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    let mut p = WEIGHT_C[0];
    for c in &WEIGHT_C[1..] {
        p = p * r + c;
    }
    // n joins the exponent; what else `rounded` has lies above bit 8.
    f32::from_bits(p.to_bits().wrapping_add(rounded.to_bits() << 23))
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
