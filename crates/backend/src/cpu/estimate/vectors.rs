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

/// One query head: `weights` are logits. Lane `j` of eight adds the weights of pages `j, j + 8, ...` of the list; each
/// output is one chain of multiply-adds, pages ascending.
struct Weighted<'a> {
    weights: &'a mut Vec<f32>,
    values: &'a [*const u16],
    partial: &'a mut [f32],
}

/// Pages whose values stay in the nearest cache while all channels are added.
const BLOCK_PAGES: usize = 32;

/// How many pages ahead values are asked for.
const PREFETCH_PAGES: usize = 24;

impl Kernel for Weighted<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let d = self.partial.len() - 2;
        self.partial.fill(0.0);
        if self.values.is_empty() {
            self.partial[d] = f32::NEG_INFINITY;
            return;
        }
        self.weights.resize(self.values.len().next_multiple_of(8), f32::NEG_INFINITY);
        let (mut most, mut sum) = (S::splat(f32::NEG_INFINITY), S::splat(0.0));
        for x in self.weights.chunks_exact(8) {
            // SAFETY: eight elements.
            most = unsafe { S::max(S::load(x.as_ptr()), most) };
        }
        let most = S::largest(most);
        for x in self.weights.chunks_exact_mut(8) {
            // SAFETY: eight elements.
            unsafe {
                let weight = S::exp(S::sub(S::load(x.as_ptr()), S::splat(most)));
                sum = S::add(sum, weight);
                S::store(x.as_mut_ptr(), weight);
            }
        }
        let total = PAGE_TOKENS as f32 * S::sum(sum);
        for (n, block) in self.values.chunks(BLOCK_PAGES).enumerate() {
            let weights = &self.weights[n * BLOCK_PAGES..];
            for c in (0..d).step_by(16) {
                // SAFETY: every pointer is to `d` elements of a frame, a multiple of sixteen, as is the partial.
                unsafe {
                    let out = self.partial.as_mut_ptr().add(c);
                    let (mut a, mut b) = (S::load(out), S::load(out.add(8)));
                    for (j, (weight, values)) in weights.iter().zip(block).enumerate() {
                        if c % 32 == 0 {
                            let ahead = (n * BLOCK_PAGES + j + PREFETCH_PAGES).min(self.values.len() - 1);
                            S::prefetch(self.values[ahead].wrapping_add(c).cast());
                        }
                        let weight = S::splat(*weight);
                        a = S::fma(weight, S::load_bf16(values.add(c)), a);
                        b = S::fma(weight, S::load_bf16(values.add(c + 8)), b);
                    }
                    S::store(out, a);
                    S::store(out.add(8), b);
                }
            }
        }
        for x in &mut self.partial[..d] {
            *x /= total;
        }
        self.partial[d] = most + total.ln();
    }
}
