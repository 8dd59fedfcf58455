//! Plain arrays of eight; the compiler vectorises them.

use super::{Lanes, SQRT_HALF_BITS, Simd, codes};

#[derive(Clone, Copy)]
pub(super) struct Portable;

#[inline(always)]
fn zip(a: [f32; 8], b: [f32; 8], f: impl Fn(f32, f32) -> f32) -> [f32; 8] {
    std::array::from_fn(|i| f(a[i], b[i]))
}

impl Lanes for Portable {
    const LANES: usize = 8;
    const FUSES: bool = false;

    type F = [f32; 8];

    #[inline(always)]
    fn splat(x: f32) -> [f32; 8] {
        [x; 8]
    }

    #[inline(always)]
    unsafe fn splat_eights(p: *const f32) -> [f32; 8] {
        // SAFETY: one element is in bounds, by the trait's contract.
        [unsafe { p.read() }; 8]
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
    fn min(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        zip(a, b, |x, y| if x < y { x } else { y })
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
    fn abs(v: [f32; 8]) -> [f32; 8] {
        v.map(f32::abs)
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
    fn maxes(v: [[f32; 8]; 8]) -> [f32; 8] {
        v.map(Self::largest)
    }

    #[inline(always)]
    fn totals<const N: usize>(v: [[f32; 8]; N]) -> [f32; N] {
        v.map(Self::sum)
    }

    #[inline(always)]
    fn largests(v: [[f32; 8]; 8]) -> [f32; 8] {
        v.map(Self::largest)
    }

    #[inline(always)]
    fn where_at_least(x: [f32; 8], least: f32, v: [f32; 8]) -> [f32; 8] {
        zip(x, v, |x, v| if x >= least { v } else { 0.0 })
    }

    #[inline(always)]
    fn times_power(v: [f32; 8], bits: [f32; 8]) -> [f32; 8] {
        zip(v, bits, |v, bits| f32::from_bits(v.to_bits().wrapping_add(bits.to_bits() << 23)))
    }

    #[inline(always)]
    fn mantissa_exponent(x: [f32; 8]) -> ([f32; 8], [f32; 8]) {
        let exponent = |x: f32| (x.to_bits() as i32 - SQRT_HALF_BITS) >> 23;
        (x.map(|x| f32::from_bits((x.to_bits() as i32 - (exponent(x) << 23)) as u32)), x.map(|x| exponent(x) as f32))
    }

    #[inline(always)]
    unsafe fn store_rounded_i8(p: *mut i8, v: [[f32; 8]; 4]) -> [f32; 8] {
        let bytes: [i8; 32] = std::array::from_fn(|i| v[i / 8][i % 8].round_ties_even() as i8);
        // SAFETY: 32 bytes are in bounds, by the trait's contract.
        unsafe { p.cast::<[i8; 32]>().write_unaligned(bytes) }
        std::array::from_fn(|i| bytes[4 * i..4 * i + 4].iter().map(|byte| f32::from(*byte)).sum())
    }

    #[inline(always)]
    unsafe fn store_rounded_u8(p: *mut u8, v: [[f32; 8]; 4]) -> [f32; 8] {
        let bytes: [u8; 32] = std::array::from_fn(|i| v[i / 8][i % 8].round_ties_even() as u8);
        // SAFETY: 32 bytes are in bounds, by the trait's contract.
        unsafe { p.cast::<[u8; 32]>().write_unaligned(bytes) }
        std::array::from_fn(|i| bytes[4 * i..4 * i + 4].iter().map(|byte| f32::from(*byte)).sum())
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
    fn prefetch(_p: *const u8) {}

    #[inline(always)]
    fn prefetch_near(_p: *const u8) {}
}

impl Simd for Portable {
    type Wide = Self;

    #[inline(always)]
    fn div(a: [f32; 8], b: [f32; 8]) -> [f32; 8] {
        zip(a, b, |x, y| x / y)
    }

    #[inline(always)]
    fn transpose(v: [[f32; 8]; 8]) -> [[f32; 8]; 8] {
        std::array::from_fn(|i| std::array::from_fn(|j| v[j][i]))
    }

    type I = [u8; 32];

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
    fn widen_u16(v: [u8; 32]) -> [[f32; 8]; 2] {
        let at = |i: usize| f32::from(u16::from_le_bytes([v[2 * i], v[2 * i + 1]]));
        [std::array::from_fn(at), std::array::from_fn(|i| at(i + 8))]
    }
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
