//! Eight f32 lanes at a time, written once and compiled per instruction set.
//!
//! A kernel is a [`Kernel`]: generic code over [`Simd`], marked `#[inline(always)]`, that [`Isa::run`] compiles inside
//! a function with the instruction set's features on. A new instruction set is one more file here and one more arm.

mod portable;

#[cfg(target_arch = "x86_64")]
mod avx2;

/// The instruction set that kernels run on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// AVX2 and FMA (x86-64 from 2013 on).
    Avx2,
    /// Plain Rust that the compiler vectorises for its baseline target.
    Portable,
}

impl Isa {
    /// The best one present.
    pub fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            return Isa::Avx2;
        }
        Isa::Portable
    }

    /// As printed.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Avx2 => "AVX2+FMA",
            Isa::Portable => "portable",
        }
    }

    /// Runs a kernel compiled for this instruction set.
    #[inline]
    pub fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `Avx2` is only made by `detect` or by callers that checked `is_available`.
            Isa::Avx2 => unsafe { avx2::run(kernel) },
            _ => kernel.run::<portable::Portable>(),
        }
    }

    /// Whether this machine can run it.
    pub fn is_available(self) -> bool {
        self == Isa::Portable || Isa::detect() == self
    }
}

/// Code compiled once per instruction set.
pub trait Kernel {
    /// What it returns.
    type Output;

    /// The body; implementations are `#[inline(always)]`.
    fn run<S: Simd>(self) -> Self::Output;
}

/// Eight f32 lanes, and 32 byte lanes for integer dot products.
///
/// # Safety
/// Pointer methods read or write exactly the elements their names say, unaligned; the caller guarantees that they are
/// in bounds, and that the instruction set is present (by running inside [`Isa::run`]).
pub trait Simd: Copy {
    /// Eight f32.
    type F: Copy;

    /// All lanes `x`.
    fn splat(x: f32) -> Self::F;
    /// Eight f32 from memory.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn load(p: *const f32) -> Self::F;
    /// Eight f32 to memory.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn store(p: *mut f32, v: Self::F);
    /// Eight bf16, in order.
    ///
    /// # Safety
    /// See the trait.
    unsafe fn load_bf16(p: *const u16) -> Self::F;
    /// Sixteen bf16: those at even places, those at odd places. Cheaper than in order.
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
    /// `a / b`
    fn div(a: Self::F, b: Self::F) -> Self::F;
    /// The larger, lane by lane.
    fn max(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, fused where the instruction set fuses.
    fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Sum of the lanes: `((0+4)+(2+6)) + ((1+5)+(3+7))`.
    fn sum(v: Self::F) -> f32;
    /// Largest lane.
    fn largest(v: Self::F) -> f32;
    /// Rows to columns: lane `j` of vector `i` is lane `i` of `v[j]`.
    fn transpose(v: [Self::F; 8]) -> [Self::F; 8];
    /// Lane `i` is the sum of the lanes of `v[i]`.
    fn sums(v: [Self::F; 8]) -> Self::F;
    /// `e^x` within 2 ulp for -87 <= x <= 88; exactly 0 below -87 (so for -inf).
    fn exp(x: Self::F) -> Self::F;

    // Selection: logarithms, and integers for 2-bit codes.

    /// 32 bytes, or 16 i16, or 8 i32.
    type I: Copy;

    /// `e^x` for x <= 0, within 5e-7 of itself; `e^-86` for x < -86. Cheaper than [`Simd::exp`].
    fn weight(x: Self::F) -> Self::F;
    /// Magnitudes.
    fn abs(v: Self::F) -> Self::F;
    /// Natural logarithm of positive normal numbers, within 2 ulp or 1e-7, whichever is more.
    fn ln(x: Self::F) -> Self::F;
    /// Lane `i` is the largest lane of `v[i]`.
    fn maxes(v: [Self::F; 8]) -> Self::F;
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
    /// Writes 32 f32 as i8, rounded to nearest, ties to even; each within -127.5 and 127.5.
    ///
    /// # Safety
    /// See the trait: 32 bytes are written.
    unsafe fn store_rounded_i8(p: *mut i8, v: [Self::F; 4]);
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
    /// To the nearest integer, ties to even; magnitudes below 2^22.
    fn round(v: Self::F) -> Self::F;
    /// Writes 32 integers 0..=255.
    ///
    /// # Safety
    /// See the trait: 32 bytes are written.
    unsafe fn store_u8(p: *mut u8, v: [Self::F; 4]);
    /// Sixteen u16: the first eight, the last eight.
    fn widen_u16(v: Self::I) -> [Self::F; 2];
    /// Asks for the cache line of `p` to be near (in L2), if the instruction set can; any address is fine.
    fn prefetch(p: *const u8);
}

/// Constants of `ln` (Cephes `logf`).
mod ln_constants {
    /// Bits of sqrt(1/2): mantissas are taken in sqrt(1/2) .. sqrt(2).
    pub(super) const SQRT_HALF_BITS: i32 = 0x3f35_04f3;
    pub(super) const LN_C: [f32; 9] = [
        7.037_683_6e-2,
        -0.115_146_1,
        0.116_769_99,
        -0.124_201_41,
        0.142_493_23,
        -0.166_680_58,
        0.200_007_15,
        -0.249_999_94,
        0.333_333_3,
    ];
}

/// Range reduction and polynomial of `exp`, shared by all instruction sets.
mod exp_constants {
    pub(super) const EXP_LEAST: f32 = -87.0;
    pub(super) const EXP_MOST: f32 = 88.0;
    pub(super) const LOG2_E: f32 = std::f32::consts::LOG2_E;
    pub(super) const ROUND: f32 = 12_582_912.0;
    pub(super) const LN2_HIGH: f32 = 0.693_359_4;
    pub(super) const LN2_LOW: f32 = -2.121_944_4e-4;
    /// Where `weight` stops falling.
    pub(super) const WEIGHT_LEAST: f32 = -86.0;
    /// e^r on |r| <= ln 2 / 2 within 8e-8 of itself, highest power first.
    pub(super) const WEIGHT_C: [f32; 6] =
        [8.297_648e-3, 4.191_543e-2, 0.166_675_75, 0.499_988_94, 0.999_999_7, 1.000_000_1];
    /// e^r on |r| <= ln 2 / 2, highest power first.
    pub(super) const EXP_C: [f32; 7] = [1.388_888_9e-3, 8.333_334e-3, 4.166_666_6e-2, 0.166_666_67, 0.5, 1.0, 1.0];
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Exp([f32; 8]);

    impl Kernel for Exp {
        type Output = [f32; 8];

        #[inline(always)]
        fn run<S: Simd>(self) -> [f32; 8] {
            let mut out = [0.0; 8];
            // SAFETY: both arrays have eight elements.
            unsafe { S::store(out.as_mut_ptr(), S::exp(S::load(self.0.as_ptr()))) };
            out
        }
    }

    struct Weight([f32; 8]);

    impl Kernel for Weight {
        type Output = [f32; 8];

        #[inline(always)]
        fn run<S: Simd>(self) -> [f32; 8] {
            let mut out = [0.0; 8];
            // SAFETY: both arrays have eight elements.
            unsafe { S::store(out.as_mut_ptr(), S::weight(S::load(self.0.as_ptr()))) };
            out
        }
    }

    #[test]
    fn weight_is_within_5e_7_of_itself() {
        for isa in [Isa::Portable, Isa::detect()] {
            for i in 0..20_000 {
                let lanes: [f32; 8] = std::array::from_fn(|j| -0.000_55 * (8 * i + j) as f32);
                for (x, y) in lanes.into_iter().zip(isa.run(Weight(lanes))) {
                    let exact = f64::from(x.max(-86.0)).exp();
                    let error = (f64::from(y) - exact).abs() / exact;
                    assert!(error <= 5e-7, "{}: weight({x}) = {y}, off by {error:e}", isa.name());
                }
            }
        }
    }

    struct Ln([f32; 8]);

    impl Kernel for Ln {
        type Output = [f32; 8];

        #[inline(always)]
        fn run<S: Simd>(self) -> [f32; 8] {
            let mut out = [0.0; 8];
            // SAFETY: both arrays have eight elements.
            unsafe { S::store(out.as_mut_ptr(), S::ln(S::load(self.0.as_ptr()))) };
            out
        }
    }

    #[test]
    fn ln_is_within_two_ulp_or_1e_7() {
        for isa in [Isa::Portable, Isa::detect()] {
            let mut x = 1e-30_f32;
            while x < 1e30 {
                let lanes: [f32; 8] = std::array::from_fn(|i| x * (1.0 + i as f32 * 0.37));
                for (x, y) in lanes.into_iter().zip(isa.run(Ln(lanes))) {
                    let exact = f64::from(x).ln();
                    let bound = (exact.abs() * 2.0 * f64::from(f32::EPSILON)).max(1e-7);
                    assert!((f64::from(y) - exact).abs() <= bound, "{}: ln({x}) = {y}, not {exact}", isa.name());
                }
                x *= 1.0137;
            }
        }
    }

    struct Integers {
        bytes: [u8; 32],
        weights: [i8; 32],
    }

    impl Kernel for Integers {
        type Output = ([f32; 8], [f32; 8], [i8; 32]);

        #[inline(always)]
        fn run<S: Simd>(self) -> Self::Output {
            let (mut halves, mut sums, mut rounded) = ([0.0; 8], [0.0; 8], [0; 32]);
            // SAFETY: every pointer is to 32 bytes or eight f32.
            unsafe {
                let w = S::load_bytes(self.weights.as_ptr().cast());
                let fields = S::fields(S::load_bytes(self.bytes.as_ptr()));
                let v = fields.map(|f| S::add_i16(S::dot_pairs(f, w), S::dot_pairs(f, w)));
                S::store(halves.as_mut_ptr(), S::half_sums_i16(v));
                let f = v.map(|v| S::half_sums_i16([v; 4]));
                let v = v.map(S::add_neighbours);
                let one = S::add_neighbours(S::dot_pairs(
                    S::splat_byte(1),
                    S::load_bytes_twice(self.weights.as_ptr().cast()),
                ));
                S::store(sums.as_mut_ptr(), S::sums_i32([v[0], v[1], v[2], v[3], one, one, v[0], v[1]]));
                S::store_rounded_i8(rounded.as_mut_ptr(), f.map(|x| S::mul(x, S::splat(1.0 / 512.0))));
            }
            (halves, sums, rounded)
        }
    }

    #[test]
    fn integer_methods_do_what_they_say() {
        let bytes: [u8; 32] = std::array::from_fn(|i| (i * 37 + 11) as u8);
        let weights: [i8; 32] = std::array::from_fn(|i| ((i * 53 + 7) % 255) as u8 as i8);
        let weights = weights.map(|w| w.max(-127));
        let field = |j: usize, k: usize| i32::from(bytes[j] >> (2 * k) & 3);
        let half =
            |k: usize, h: usize| (16 * h..16 * h + 16).map(|j| 2 * field(j, k) * i32::from(weights[j])).sum::<i32>();
        let twice = 2 * weights[..16].iter().map(|w| i32::from(*w)).sum::<i32>();
        for isa in [Isa::Portable, Isa::detect()] {
            let (halves, sums, rounded) = isa.run(Integers { bytes, weights });
            for k in 0..4 {
                assert_eq!([halves[2 * k], halves[2 * k + 1]], [half(k, 0) as f32, half(k, 1) as f32]);
                assert_eq!(sums[k], (half(k, 0) + half(k, 1)) as f32);
                for j in 0..8 {
                    let x = half(k, j % 2) as f32 / 512.0;
                    assert_eq!(f32::from(rounded[8 * k + j]), x.round_ties_even());
                }
            }
            assert_eq!(sums[4], twice as f32);
        }
    }

    struct Bytes {
        bytes: [u8; 64],
        weights: [f32; 32],
    }

    impl Kernel for Bytes {
        type Output = ([u8; 96], [u8; 64], [f32; 16]);

        #[inline(always)]
        fn run<S: Simd>(self) -> Self::Output {
            let (mut mixed, mut stored, mut wide) = ([0; 96], [0; 64], [0.0; 16]);
            // SAFETY: every pointer is to as many elements as the method reads or writes.
            unsafe {
                let (a, b) = (S::load_bytes(self.bytes.as_ptr()), S::load_bytes(self.bytes[32..].as_ptr()));
                let [first, last] = S::interleave(a, b);
                S::store_bytes(mixed.as_mut_ptr(), first);
                S::store_bytes(mixed[32..].as_mut_ptr(), last);
                S::store_bytes(mixed[64..].as_mut_ptr(), S::interleave_halves(a));
                let mut rounded = [S::splat(0.0); 4];
                for i in 0..4 {
                    rounded[i] = S::round(S::load(self.weights[8 * i..].as_ptr()));
                }
                S::store_u8(stored.as_mut_ptr(), rounded);
                S::store_bytes(stored[32..].as_mut_ptr(), S::load_two_bytes(self.bytes[3..].as_ptr()));
                let [x, y] = S::widen_u16(a);
                S::store(wide.as_mut_ptr(), x);
                S::store(wide[8..].as_mut_ptr(), y);
            }
            (mixed, stored, wide)
        }
    }

    #[test]
    fn byte_methods_do_what_they_say() {
        let bytes: [u8; 64] = std::array::from_fn(|i| (i * 37 + 11) as u8);
        let weights: [f32; 32] = std::array::from_fn(|i| [0.0, 0.5, 1.5, 254.6, 255.0][i % 5]);
        let (a, b) = (&bytes[..32], &bytes[32..]);
        for isa in [Isa::Portable, Isa::detect()] {
            let (mixed, stored, wide) = isa.run(Bytes { bytes, weights });
            for i in 0..32 {
                let from = |start: usize| if i % 2 == 0 { a } else { b }[i / 16 * 16 + start + i % 16 / 2];
                assert_eq!([mixed[i], mixed[32 + i]], [from(0), from(8)]);
                assert_eq!(mixed[64 + i], a[i / 2 + 16 * (i % 2)]);
                assert_eq!([stored[i], stored[32 + i]], [weights[i].round_ties_even() as u8, bytes[3 + i % 2]]);
            }
            for i in 0..16 {
                assert_eq!(wide[i], f32::from(u16::from_le_bytes([a[2 * i], a[2 * i + 1]])));
            }
        }
    }

    #[test]
    fn exp_is_within_two_ulp_and_zero_far_below() {
        for isa in [Isa::Portable, Isa::detect()] {
            let mut x = -86.9_f32;
            while x < 88.0 {
                let lanes: [f32; 8] = std::array::from_fn(|i| x + i as f32 * 0.01);
                for (x, y) in lanes.into_iter().zip(isa.run(Exp(lanes))) {
                    let exact = f64::from(x.min(88.0)).exp();
                    let error = (f64::from(y) - exact).abs() / (exact * f64::from(f32::EPSILON));
                    assert!(error <= 2.0, "{}: exp({x}) = {y}, off by {error} ulp", isa.name());
                }
                x += 0.0813;
            }
            assert_eq!(
                isa.run(Exp([f32::NEG_INFINITY, -1e30, -87.01, -100.0, 0.0, 0.0, 0.0, 0.0]))[..5],
                [0.0, 0.0, 0.0, 0.0, 1.0]
            );
        }
    }
}
