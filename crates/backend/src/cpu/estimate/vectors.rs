//! Estimate from vectors: with t the logits that `score_dot` left in the page scores,
//! `output = sum e^t value_sum / sum 8 e^t`, `lse = ln sum 8 e^t`.

use super::super::simd::{Kernel, Simd};
use super::Part;
use crate::VectorSummary;
use kv::PAGE_TOKENS;
use std::cell::RefCell;

thread_local! {
    /// Weights `[heads of a chunk][pages]`, and the positions of the unselected pages' value sums.
    static SCRATCH: RefCell<(Vec<f32>, Vec<*const u16>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// Writes the partial of every query head of the part.
pub(super) fn estimate(part: &Part<'_>) {
    let (d, form) = (part.rt.shape.geometry.head_dim, VectorSummary::MeanKeyAndValueSum);
    SCRATCH.with_borrow_mut(|(weights, values)| {
        let mut pages = Vec::new();
        values.clear();
        for page in part.pages.clone().filter(|page| !part.is_selected(*page)) {
            let frame = part.rt.frame(part.lane.summary_rows[page / form.row_pages()], part.layer, part.head);
            pages.push(page);
            values.push(frame[(page % form.row_pages() * 2 + 1) * d..][..d].as_ptr());
        }
        for row in part.rows() {
            let scores = &part.rt.work.page_scores.all()[row * part.rt.work.max_pages..][..part.rt.work.max_pages];
            weights.clear();
            weights.extend(pages.iter().map(|page| scores[*page]));
            part.rt.isa.run(Weighted { weights, values, partial: part.partial(row) });
        }
    });
}

/// One query head: `weights` are logits.
struct Weighted<'a> {
    weights: &'a mut [f32],
    values: &'a [*const u16],
    partial: &'a mut [f32],
}

impl Kernel for Weighted<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let d = self.partial.len() - 2;
        let most = self.weights.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        self.partial.fill(0.0);
        if most == f32::NEG_INFINITY {
            self.partial[d] = most;
            return;
        }
        let mut sum = 0.0;
        for weight in self.weights.iter_mut() {
            *weight = (*weight - most).exp();
            sum += *weight;
        }
        let total = PAGE_TOKENS as f32 * sum;
        for c in (0..d).step_by(8) {
            let mut acc = S::splat(0.0);
            for (weight, values) in self.weights.iter().zip(self.values) {
                // SAFETY: `values` points to `d` elements of a frame.
                acc = unsafe { S::fma(S::splat(*weight), S::load_bf16(values.add(c)), acc) };
            }
            // SAFETY: the partial has `d` elements, a multiple of eight.
            unsafe { S::store(self.partial.as_mut_ptr().add(c), S::mul(acc, S::splat(1.0 / total))) };
        }
        self.partial[d] = most + total.ln();
    }
}
