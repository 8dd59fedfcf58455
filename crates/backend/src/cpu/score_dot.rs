//! Scores of mean keys.

use super::dot::{dots_of_eight, even_odd};
use super::lanes::Lane;
use super::runtime::{CpuRuntime, rows};
use super::simd::{Kernel, Simd};
use crate::{AlgorithmId, VectorSummary, View};
use kv::selection::Selected;
use std::ops::Range;

/// Summary frames of one task.
const TASK_FRAMES: usize = 32;

/// How far ahead frames are asked for: they lie a row apart, where no hardware prefetcher looks.
const PREFETCH_PAGES: usize = 32;

/// See [`crate::Runtime`]: `page_scores[i][q_head][page] = q . mean key / sqrt(d)` for pages `0..b`.
pub(super) fn score_dot(rt: &CpuRuntime, algorithm: AlgorithmId, layer: usize, q: View<'_>, form: VectorSummary) {
    let lanes = rt.lanes();
    let (heads, d) = (rt.shape.geometry.kv_heads, rt.shape.geometry.head_dim);
    let (q, q_heads, group) = (rows(q, lanes.active.len()), rt.shape.q_heads, rt.group());
    let task_pages = TASK_FRAMES * form.row_pages();
    for (i, lane) in lanes.of(algorithm) {
        let pages = match lane.selection.at(lane.len) {
            Selected::AllExact(_) => continue,
            Selected::Pages { indexed, .. } => indexed,
        };
        let tasks = pages.div_ceil(task_pages);
        rt.threads.each(tasks * heads, pages * d * q_heads, |task| {
            let (head, first) = (task % heads, task / heads * task_pages);
            let end = pages.min(first + task_pages);
            let mut h = head * group;
            while h < (head + 1) * group {
                let part = Part { rt, lane, i, layer, head, h, form, pages: first..end };
                h += match (head + 1) * group - h {
                    1 => part.score::<1>(q),
                    2 | 3 => part.score::<2>(q),
                    _ => part.score::<4>(q),
                };
            }
        });
    }
}

/// Pages of one lane for some query heads, from `h` on, of one KV head.
struct Part<'a> {
    rt: &'a CpuRuntime,
    lane: &'a Lane,
    i: usize,
    layer: usize,
    head: usize,
    h: usize,
    form: VectorSummary,
    pages: Range<usize>,
}

impl Part<'_> {
    /// Writes the scores of `H` heads; returns `H`.
    fn score<const H: usize>(self, q: &[f32]) -> usize {
        let (rt, form, d) = (self.rt, self.form, self.rt.shape.geometry.head_dim);
        let row = self.i * rt.shape.q_heads + self.h;
        let mut queries = [[0.0; 256]; H];
        for (h, query) in queries.iter_mut().enumerate() {
            even_odd(&q[(row + h) * d..][..d], &mut query[..d]);
        }
        let mut scores: [&mut [f32]; H] = std::array::from_fn(|h| {
            let at = (row + h) * rt.work.max_pages;
            // SAFETY: this task alone writes these scores.
            unsafe { rt.work.page_scores.part(at + self.pages.start..at + self.pages.end) }
        });
        let last = self.pages.end - 1;
        let vectors = |page: usize| {
            let frame = rt.frame(self.lane.summary_rows[page / form.row_pages()], self.layer, self.head);
            &frame[page % form.row_pages() * form.page_vectors() * d..]
        };
        for page in self.pages.clone().step_by(8) {
            let done = page - self.pages.start;
            let eight = scores.each_mut().map(|scores| {
                let end = scores.len().min(done + 8);
                &mut scores[done..end]
            });
            let ahead = vectors((page + PREFETCH_PAGES).min(last));
            rt.isa.run(Scores { q: &queries, d, vectors: vectors(page), ahead, form, scores: eight });
        }
        H
    }
}

/// Scores of up to eight pages.
struct Scores<'a, const H: usize> {
    q: &'a [[f32; 256]; H],
    d: usize,
    vectors: &'a [u16],
    ahead: &'a [u16],
    form: VectorSummary,
    scores: [&'a mut [f32]; H],
}

impl<const H: usize> Kernel for Scores<'_, H> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let (d, stride) = (self.d, self.form.page_vectors() * self.d);
        assert!(self.vectors.len() >= 7 * stride + d && d.is_multiple_of(16) && d <= 256);
        for line in self.ahead.chunks(32).take(8 * stride / 32) {
            S::prefetch(line.as_ptr().cast());
        }
        let mut q = [std::ptr::null(); H];
        for h in 0..H {
            q[h] = self.q[h].as_ptr();
        }
        // SAFETY: eight vectors and `H` queries are in bounds by the assertion.
        let dots = unsafe { dots_of_eight::<S, H>(q, self.vectors.as_ptr(), stride, d) };
        let scale = S::splat(1.0 / (d as f32).sqrt());
        for h in 0..H {
            let mut scores = [0.0; 8];
            // SAFETY: eight elements.
            unsafe { S::store(scores.as_mut_ptr(), S::mul(dots[h], scale)) };
            let count = self.scores[h].len();
            self.scores[h].copy_from_slice(&scores[..count]);
        }
    }
}
