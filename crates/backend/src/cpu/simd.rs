//! Vectors of f32, written once and compiled per instruction set.
//!
//! A kernel is a [`Kernel`]: generic code over [`Simd`], marked `#[inline(always)]`, that [`Isa::run`] compiles inside
//! a function with the instruction set's features on. Kernels count on eight lanes, which every instruction set has;
//! those that pay for it leave the width to [`Simd::Wide`], and are written over [`Lanes`].
//! A new instruction set is one more file here and one more arm.

mod codes;
mod functions;
mod portable;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;

/// The instruction set that kernels run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// AVX-512 with bytes, permutations of bytes and their dot products (Intel from 2019, AMD from 2022 on).
    Avx512,
    /// AVX2 and FMA (x86-64 from 2013 on).
    Avx2,
    /// Plain Rust that the compiler vectorises for its baseline target.
    Portable,
}

impl Isa {
    /// All of them, the best one first.
    pub const ALL: [Isa; 3] = [Isa::Avx512, Isa::Avx2, Isa::Portable];

    /// The best one present.
    pub fn detect() -> Self {
        Isa::ALL.into_iter().find(|isa| isa.is_available()).unwrap_or(Isa::Portable)
    }

    /// As printed.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Avx512 => "AVX-512",
            Isa::Avx2 => "AVX2+FMA",
            Isa::Portable => "portable",
        }
    }

    /// The one of that name.
    pub fn named(name: &str) -> Option<Self> {
        Isa::ALL.into_iter().find(|isa| isa.name() == name)
    }

    /// Runs a kernel compiled for this instruction set.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Avx512` is only made by `detect` or by callers that checked `is_available`.
            Isa::Avx512 => unsafe { avx512::run(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: and so is `Avx2`.
            Isa::Avx2 => unsafe { avx2::run(kernel) },
            _ => kernel.run::<portable::Portable>(),
        }
    }

    /// Whether this machine can run it.
    pub fn is_available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => avx512::is_present(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => avx2::is_present(),
            Isa::Portable => true,
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }
}

/// Code compiled once per instruction set.
pub trait Kernel {
    /// What it returns.
    type Output;

    /// The body; implementations are `#[inline(always)]`.
    fn run<S: Simd>(self) -> Self::Output;
}

/// Vectors of [`Lanes::LANES`] f32, eight or sixteen: one or two *eights*.
///
/// # Safety
/// Pointer methods read or write exactly the elements their names say, unaligned; the caller guarantees that they are
/// in bounds, and that the instruction set is present (by running inside [`Isa::run`]).
pub trait Lanes: Copy {
    /// f32 in a vector.
    const LANES: usize;
    /// Eights in a vector.
    const EIGHTS: usize = Self::LANES / 8;
    /// Whether `fma` rounds once.
    const FUSES: bool;

    /// A vector.
    type F: Copy;

    /// All lanes `x`.
    fn splat(x: f32) -> Self::F;
    /// Every eight all one element: that of `p[0]`, then that of `p[1]`.
    ///
    /// # Safety
    /// See the trait: as many elements as there are eights.
    unsafe fn splat_eights(p: *const f32) -> Self::F;
    /// A vector from memory.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn load(p: *const f32) -> Self::F;
    /// A vector to memory.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn store(p: *mut f32, v: Self::F);
    /// A vector of bf16, in order.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn load_bf16(p: *const u16) -> Self::F;
    /// Two vectors of bf16: those at even places, those at odd places. Cheaper than in order.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn load_bf16_even_odd(p: *const u16) -> (Self::F, Self::F);
    /// `a + b`
    fn add(a: Self::F, b: Self::F) -> Self::F;
    /// `a - b`
    fn sub(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b`
    fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// The smaller, lane by lane.
    fn min(a: Self::F, b: Self::F) -> Self::F;
    /// The larger, lane by lane.
    fn max(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, fused where the instruction set fuses.
    fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Magnitudes.
    fn abs(v: Self::F) -> Self::F;
    /// Sum of the lanes, halves added until one is left; of eight: `((0+4)+(2+6)) + ((1+5)+(3+7))`.
    fn sum(v: Self::F) -> f32;
    /// Largest lane.
    fn largest(v: Self::F) -> f32;
    /// The eights of `v[0]`, then those of `v[1]`, ...: lane `i` is the sum of the `i`-th.
    fn sums(v: [Self::F; 8]) -> Self::F;
    /// Likewise, the largest lane of the `i`-th.
    fn maxes(v: [Self::F; 8]) -> Self::F;
    /// Sums of whole vectors; `N` is a multiple of eight.
    fn totals<const N: usize>(v: [Self::F; N]) -> [f32; N];
    /// Largest lanes of whole vectors.
    fn largests(v: [Self::F; 8]) -> [f32; 8];

    /// `v` where `x >= least`, 0 elsewhere.
    fn where_at_least(x: Self::F, least: f32, v: Self::F) -> Self::F;
    /// `v * 2^n`, n the integer in the low nine bits of `bits`; the result is a normal number.
    fn times_power(v: Self::F, bits: Self::F) -> Self::F;
    /// `x = m 2^e` with m in sqrt(1/2) .. sqrt(2), for positive normal x: (m, e).
    fn mantissa_exponent(x: Self::F) -> (Self::F, Self::F);
    /// `e^x` within 2.5 ulp for -87 <= x <= 88; exactly 0 below -87 (so for -inf).
    #[inline(always)]
    fn exp(x: Self::F) -> Self::F {
        functions::exp::<Self>(x)
    }
    /// `e^x` for x <= 0, within 5e-7 of itself; `e^-86` for x < -86. Cheaper than [`Lanes::exp`].
    #[inline(always)]
    fn weight(x: Self::F) -> Self::F {
        functions::weight::<Self>(x)
    }
    /// Natural logarithm of positive normal numbers, within 2 ulp or 1e-7, whichever is more.
    #[inline(always)]
    fn ln(x: Self::F) -> Self::F {
        functions::ln::<Self>(x)
    }

    /// Writes four vectors as i8, rounded to nearest, ties to even; each within -127.5 and 127.5. The lanes of what is
    /// returned are integers that add up to the sum of all.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn store_rounded_i8(p: *mut i8, v: [Self::F; 4]) -> Self::F;
    /// Likewise as u8; each within -0.5 and 255.5.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn store_rounded_u8(p: *mut u8, v: [Self::F; 4]) -> Self::F;
    /// Lane `t` of result `h` is the sum of the 2-bit codes of row `t` times the weights `h`, an exact integer.
    ///
    /// # Safety
    /// Rows are `[LANES][row_bytes]`, weights i8 `[H][4][row_bytes]` (-127..=127), `row_bytes` 16, 32 or 64.
    unsafe fn code_sums<const H: usize>(rows: *const u8, weights: *const u8, row_bytes: usize) -> [Self::F; H];
    /// Adds `unit[h]` times each channel's sum, over 48 rows, of code times weight `h` of the row.
    ///
    /// # Safety
    /// Rows are `[48][row_bytes]`, weights u8 `[48]`, sums `[H][4][row_bytes]`, `row_bytes` 16 or a multiple of 32.
    unsafe fn add_codes<const H: usize>(
        rows: *const u8,
        row_bytes: usize,
        weights: [*const u8; H],
        units: [f32; H],
        sums: *mut f32,
    );

    /// Asks for the cache line of `p` to be near (in L2), if the instruction set can; any address is fine.
    fn prefetch(p: *const u8);
    /// Asks for the cache line of `p` to be nearest (in L1), likewise.
    fn prefetch_near(p: *const u8);
}

/// Eight f32 lanes, and 32 byte lanes for integer dot products.
///
/// # Safety
/// See [`Lanes`].
pub trait Simd: Lanes {
    /// The widest vectors that the instruction set has.
    type Wide: Lanes;

    /// `a / b`
    fn div(a: Self::F, b: Self::F) -> Self::F;
    /// Rows to columns: lane `j` of vector `i` is lane `i` of `v[j]`.
    fn transpose(v: [Self::F; 8]) -> [Self::F; 8];

    // Integers for 2-bit codes.

    /// 32 bytes, or 16 i16, or 8 i32.
    type I: Copy;

    /// 32 bytes from memory.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn load_bytes(p: *const u8) -> Self::I;
    /// Sixteen bytes from memory, in both halves.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn load_bytes_twice(p: *const u8) -> Self::I;
    /// The four 2-bit fields of every byte, lowest first.
    fn fields(x: Self::I) -> [Self::I; 4];
    /// All bytes `x`.
    fn splat_byte(x: u8) -> Self::I;
    /// Sixteen i16: unsigned bytes times signed bytes, neighbours added. The sums must fit.
    fn dot_pairs(unsigned: Self::I, signed: Self::I) -> Self::I;
    /// Sixteen i16: `a + b`, modulo 2^16.
    fn add_i16(a: Self::I, b: Self::I) -> Self::I;
    /// Eight i32: neighbouring i16 added.
    fn add_neighbours(a: Self::I) -> Self::I;
    /// Lane `2i` is the sum of the first eight i16 of `v[i]`, lane `2i + 1` that of its last eight. They must fit i16,
    /// and so must the sums of some of their elements.
    fn half_sums_i16(v: [Self::I; 4]) -> Self::F;
    /// Lane `i` is the sum of the i32 of `v[i]`.
    fn sums_i32(v: [Self::I; 8]) -> Self::F;
    /// 32 bytes to memory.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn store_bytes(p: *mut u8, v: Self::I);
    /// Two bytes from memory, sixteen times.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn load_two_bytes(p: *const u8) -> Self::I;
    /// The two halves of `v` with their bytes alternating.
    fn interleave_halves(v: Self::I) -> Self::I;
    /// Bytes of `a` and `b` alternating: of the first eight of each half, then of the last eight of each half.
    fn interleave(a: Self::I, b: Self::I) -> [Self::I; 2];
    /// Sixteen u16: the first eight, the last eight.
    fn widen_u16(v: Self::I) -> [Self::F; 2];
}

/// Lanes of the widest vector.
pub const MOST_LANES: usize = 16;

/// Bits of sqrt(1/2), for [`Lanes::mantissa_exponent`].
const SQRT_HALF_BITS: i32 = 0x3f35_04f3;

#[cfg(test)]
mod tests;
