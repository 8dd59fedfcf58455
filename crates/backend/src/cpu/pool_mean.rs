//! Index of mean keys: one mean (and value sum) a page, from the bf16 K and V in rows.
//!
//! Each element is the f32 sum of the page's eight tokens, first to last, (times 1/8,) rounded to bf16: a function of
//! the page alone, so any split of the range gives the same bytes. A summary frame has one writer.

use super::runtime::CpuRuntime;
use super::simd::{Kernel, Simd};
use super::units::{by_summary_row, with_spans};
use crate::{AlgorithmId, IndexUnits, VectorSummary};
use half::bf16;
use kv::PAGE_TOKENS;
use kv::geometry::FRAME_VECTORS;

impl VectorSummary {
    /// Vectors of a page.
    pub fn page_vectors(self) -> usize {
        match self {
            VectorSummary::MeanKey => 1,
            VectorSummary::MeanKeyAndValueSum => 2,
        }
    }

    /// Pages of a summary row.
    pub fn row_pages(self) -> usize {
        FRAME_VECTORS / self.page_vectors()
    }
}

/// See [`crate::Runtime`].
pub(super) fn pool_mean(
    rt: &CpuRuntime,
    algorithm: AlgorithmId,
    layer: usize,
    units: IndexUnits<'_>,
    form: VectorSummary,
) {
    let (heads, d) = (rt.shape.geometry.kv_heads, rt.shape.geometry.head_dim);
    with_spans(rt, algorithm, units, |spans| {
        let parts = by_summary_row(spans, form.row_pages());
        let pages: usize = spans.iter().map(|span| span.pages.len()).sum();
        rt.threads.each(parts.len() * heads, pages * heads * d * PAGE_TOKENS, |task| {
            let ((span, row, pages), head) = (&parts[task / heads], task % heads);
            let span = &spans[*span];
            // SAFETY: `parts` names every summary row once (of a lane's own rows), so this task alone has the frame.
            let summary = unsafe { rt.frame_mut(span.summary_rows[*row], layer, head) };
            for page in pages.clone() {
                let (keys, values) = rt.frame(span.kv_rows[page], layer, head).split_at(PAGE_TOKENS * d);
                let at = (page % form.row_pages()) * form.page_vectors() * d;
                rt.isa.run(SumOfPage { vectors: keys, factor: 0.125, out: &mut summary[at..at + d] });
                if form == VectorSummary::MeanKeyAndValueSum {
                    rt.isa.run(SumOfPage { vectors: values, factor: 1.0, out: &mut summary[at + d..at + 2 * d] });
                }
            }
        });
    });
}

/// `out[c] = bf16(factor * sum over tokens of vectors[t][c])`; `vectors` is `[8][d]`, d a multiple of 8.
struct SumOfPage<'a> {
    vectors: &'a [u16],
    factor: f32,
    out: &'a mut [u16],
}

impl Kernel for SumOfPage<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let d = self.out.len();
        assert!(self.vectors.len() == PAGE_TOKENS * d && d.is_multiple_of(8));
        for (c, out) in self.out.chunks_exact_mut(8).enumerate() {
            let mut sums = [0.0; 8];
            // SAFETY: row `t` has elements `8 c..8 c + 8`, by the lengths above.
            unsafe {
                let first = self.vectors.as_ptr().add(8 * c);
                let mut sum = S::load_bf16(first);
                for t in 1..PAGE_TOKENS {
                    sum = S::add(sum, S::load_bf16(first.add(t * d)));
                }
                S::store(sums.as_mut_ptr(), S::mul(sum, S::splat(self.factor)));
            }
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = bf16::from_f32(sum).to_bits();
            }
        }
    }
}
