//! Scores of mean keys.

use super::dot::{dots_of_eight, even_odd};
use super::runtime::{CpuRuntime, rows};
use super::simd::{Kernel, Simd};
use crate::{AlgorithmId, VectorSummary, View};

/// Summary frames of one task.
const TASK_FRAMES: usize = 32;

/// See [`crate::Runtime`]: `page_scores[i][q_head][page] = q . mean key / sqrt(d)` for pages `0..b`.
pub(super) fn score_dot(rt: &CpuRuntime, algorithm: AlgorithmId, layer: usize, q: View<'_>, form: VectorSummary) {
    let lanes = rt.lanes();
    let (heads, d) = (rt.shape.geometry.kv_heads, rt.shape.geometry.head_dim);
    let (q, q_heads, group) = (rows(q, lanes.active.len()), rt.shape.q_heads, rt.group());
    let task_pages = TASK_FRAMES * form.row_pages();
    for (i, lane) in lanes.of(algorithm) {
        let pages = lane.selection.indexed_pages(lane.len);
        let tasks = pages.div_ceil(task_pages);
        rt.threads.each(tasks * heads, pages * d * q_heads, |task| {
            let (head, first) = (task % heads, task / heads * task_pages);
            let mut query = [0.0; 256];
            let end = pages.min(first + task_pages);
            for h in head * group..(head + 1) * group {
                even_odd(&q[(i * q_heads + h) * d..][..d], &mut query[..d]);
                let at = (i * q_heads + h) * rt.work.max_pages;
                // SAFETY: this task alone writes these scores.
                let scores = unsafe { rt.work.page_scores.part(at + first..at + end) };
                for (n, scores) in scores.chunks_mut(8).enumerate() {
                    let page = first + 8 * n;
                    let frame = rt.frame(lane.summary_rows[page / form.row_pages()], layer, head);
                    let vector = page % form.row_pages() * form.page_vectors();
                    rt.isa.run(Scores { q: &query[..d], vectors: &frame[vector * d..], form, scores });
                }
            }
        });
    }
}

/// Scores of up to eight pages.
struct Scores<'a> {
    q: &'a [f32],
    vectors: &'a [u16],
    form: VectorSummary,
    scores: &'a mut [f32],
}

impl Kernel for Scores<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let (d, stride) = (self.q.len(), self.form.page_vectors() * self.q.len());
        assert!(self.vectors.len() >= 7 * stride + d && d.is_multiple_of(16));
        let mut scores = [0.0; 8];
        // SAFETY: eight vectors are in bounds by the assertion.
        unsafe {
            let [dots] = dots_of_eight::<S, 1>([self.q.as_ptr()], self.vectors.as_ptr(), stride, d);
            S::store(scores.as_mut_ptr(), S::mul(dots, S::splat(1.0 / (d as f32).sqrt())));
        }
        self.scores.copy_from_slice(&scores[..self.scores.len()]);
    }
}
