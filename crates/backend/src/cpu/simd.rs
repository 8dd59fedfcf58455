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
    /// The larger, lane by lane.
    fn max(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, fused where the instruction set fuses.
    fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Sum of the lanes: `((0+4)+(2+6)) + ((1+5)+(3+7))`.
    fn sum(v: Self::F) -> f32;
    /// Largest lane.
    fn largest(v: Self::F) -> f32;
    /// Lane `i` is the sum of the lanes of `v[i]`.
    fn sums(v: [Self::F; 8]) -> Self::F;
    /// `e^x` within 2 ulp for -87 <= x <= 88; exactly 0 below -87 (so for -inf).
    fn exp(x: Self::F) -> Self::F;
}

/// Range reduction and polynomial of `exp`, shared by all instruction sets.
mod exp_constants {
    pub(super) const EXP_LEAST: f32 = -87.0;
    pub(super) const EXP_MOST: f32 = 88.0;
    pub(super) const LOG2_E: f32 = std::f32::consts::LOG2_E;
    pub(super) const ROUND: f32 = 12_582_912.0;
    pub(super) const LN2_HIGH: f32 = 0.693_359_4;
    pub(super) const LN2_LOW: f32 = -2.121_944_4e-4;
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
