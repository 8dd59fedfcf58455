//! Log-sum-exp over slices.

use super::simd::{Kernel, Simd};

/// `log sum e^x`; -inf for none. Lane `j` of eight adds elements `j, j + 8, ...` in order, the lanes are added as
/// [`super::simd::Lanes::sum`] does.
pub(super) struct LogSumExp<'a>(pub(super) &'a [f32]);

impl Kernel for LogSumExp<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self) -> f32 {
        let (eights, rest) = self.0.as_chunks::<8>();
        let mut last = [f32::NEG_INFINITY; 8];
        last[..rest.len()].copy_from_slice(rest);
        // SAFETY: every pointer is to eight elements.
        unsafe {
            let tail = S::load(last.as_ptr());
            let mut most = tail;
            for x in eights {
                most = S::max(S::load(x.as_ptr()), most);
            }
            let most = S::largest(most);
            if most == f32::NEG_INFINITY {
                return most;
            }
            let (shift, mut sum) = (S::splat(most), S::splat(0.0));
            for x in eights {
                sum = S::add(sum, S::exp(S::sub(S::load(x.as_ptr()), shift)));
            }
            most + S::sum(S::add(sum, S::exp(S::sub(tail, shift)))).ln()
        }
    }
}
