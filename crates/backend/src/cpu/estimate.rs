//! Approximate attention over unselected candidates: from mean keys and value sums, or from 2-bit value codes.
//!
//! Candidates are split at absolute multiples of 1,024 pages (8,192 tokens); a split's partial is a function of query,
//! summaries and bitmap; partials merge ascending:
//! ```text
//! M = largest lse;  w_i = e^(lse_i - M);  output = sum w_i output_i / sum w_i;  lse = M + ln sum w_i
//! ```
//! A split without unselected candidates has lse -inf and counts for nothing.

mod codes;

mod vectors;

use super::lanes::Lane;
use super::runtime::{CpuRuntime, activations, vector};
use super::simd::{Kernel, Simd};
use crate::{AlgorithmId, EstimateSource, Partial, View};
use kv::selection::Selected;
use std::ops::Range;

/// Pages of one split.
const SPLIT_PAGES: usize = 1024;

/// See [`crate::Runtime`].
pub(super) fn estimate(
    rt: &CpuRuntime,
    algorithm: AlgorithmId,
    layer: usize,
    source: EstimateSource<'_>,
    _q: View<'_>,
    out: &Partial,
) {
    let lanes = rt.lanes();
    let (heads, d, q_heads) = (rt.shape.geometry.kv_heads, rt.shape.geometry.head_dim, rt.shape.q_heads);
    for (i, lane) in lanes.of(algorithm) {
        let candidates = match lane.selection.at(lane.len) {
            Selected::AllExact(_) => 0..0,
            Selected::Pages { sink, indexed, .. } => sink..indexed,
        };
        let splits = candidates.end.div_ceil(SPLIT_PAGES);
        let cost = candidates.len() * q_heads * d;
        rt.threads.each(splits * heads, cost, |task| {
            let (head, split) = (task / splits, task % splits);
            let (first, end) = (split * SPLIT_PAGES, (split + 1) * SPLIT_PAGES);
            let pages = candidates.start.max(first)..candidates.end.min(end).max(candidates.start.max(first));
            let part = Part { rt, lane, i, layer, head, split, pages };
            match source {
                EstimateSource::Vectors => vectors::estimate(&part),
                EstimateSource::Codes { .. } => codes::estimate(&part),
            }
        });
        let rotation = match source {
            EstimateSource::Vectors => None,
            EstimateSource::Codes { value_rotation } => Some(vector(value_rotation)),
        };
        let (output, lse) = (activations(&out.output), activations(&out.lse));
        rt.threads.each(q_heads, q_heads * d * (splits + d), |h| {
            let head = h / (q_heads / heads);
            let rotation = rotation.map(|r| &r[head * d * d..(head + 1) * d * d]);
            let at = (i * q_heads + h) * rt.work.max_splits * (d + 2);
            let splits = &rt.work.splits.all()[at..at + splits * (d + 2)];
            // SAFETY: this task alone writes this head's output.
            let (out, lse) = unsafe {
                (
                    output.part((i * q_heads + h) * d..(i * q_heads + h + 1) * d),
                    &mut lse.part(i * q_heads + h..i * q_heads + h + 1)[0],
                )
            };
            *lse = rt.isa.run(Merge { splits, rotation, out });
        });
    }
}

/// What one task works on: the candidates of one split, for the query heads of one KV head.
struct Part<'a> {
    rt: &'a CpuRuntime,
    lane: &'a Lane,
    i: usize,
    layer: usize,
    head: usize,
    split: usize,
    pages: Range<usize>,
}

impl<'a> Part<'a> {
    /// Query heads of the group, as rows of the workspace.
    fn rows(&self) -> Range<usize> {
        let first = self.i * self.rt.shape.q_heads + self.head * self.rt.group();
        first..first + self.rt.group()
    }

    /// Whether a page was selected.
    fn is_selected(&self, page: usize) -> bool {
        let head = self.i * self.rt.shape.geometry.kv_heads + self.head;
        self.rt.work.selected.all()[head * self.rt.work.bitmap_words + page / 32] >> (page % 32) & 1 == 1
    }

    /// The selected pages.
    fn selected(&self) -> impl Iterator<Item = usize> {
        let head = self.i * self.rt.shape.geometry.kv_heads + self.head;
        let words = &self.rt.work.selected.all()[head * self.rt.work.bitmap_words..][..self.pages.end.div_ceil(32)];
        let pages = self.pages.clone();
        let words = (pages.start / 32..words.len()).map(|i| (i, words[i]));
        let bits =
            |(i, word): (usize, u32)| (0..32).filter(move |bit| word >> bit & 1 == 1).map(move |bit| 32 * i + bit);
        words.filter(|(_, word)| *word != 0).flat_map(bits).filter(move |page| pages.contains(page))
    }

    /// Where a row's partial goes: `[d]` output, log-sum-exp, one spare.
    fn partial(&self, row: usize) -> &'a mut [f32] {
        let len = self.rt.shape.geometry.head_dim + 2;
        let at = (row * self.rt.work.max_splits + self.split) * len;
        // SAFETY: this task alone writes this split of its rows, and each once.
        unsafe { self.rt.work.splits.part(at..at + len) }
    }
}

/// Joins splits `[n][d + 2]` (see the module); `out` is rotated back by the transpose of `rotation`, where there is
/// one: a chain of multiply-adds per output, rotated channels ascending. Returns the log-sum-exp.
struct Merge<'a> {
    splits: &'a [f32],
    rotation: Option<&'a [f32]>,
    out: &'a mut [f32],
}

impl Kernel for Merge<'_> {
    type Output = f32;

    #[inline(always)]
    fn run<S: Simd>(self) -> f32 {
        let d = self.out.len();
        self.out.fill(0.0);
        let splits = self.splits.chunks_exact(d + 2);
        let most = splits.clone().map(|split| split[d]).fold(f32::NEG_INFINITY, f32::max);
        if most == f32::NEG_INFINITY {
            return most;
        }
        let (mut sum, mut merged) = (0.0, [0.0_f32; 256]);
        for split in splits.filter(|split| split[d] > f32::NEG_INFINITY) {
            let weight = (split[d] - most).exp();
            sum += weight;
            for (out, x) in merged.iter_mut().zip(&split[..d]) {
                *out += weight * x;
            }
        }
        for x in &mut merged[..d] {
            *x /= sum;
        }
        match self.rotation {
            None => self.out.copy_from_slice(&merged[..d]),
            Some(rotation) => {
                assert!(rotation.len() == d * d && d.is_multiple_of(8));
                for (x, row) in merged.iter().zip(rotation.chunks_exact(d)) {
                    for c in (0..d).step_by(8) {
                        // SAFETY: `c..c + 8` lie inside both.
                        unsafe {
                            let out = self.out.as_mut_ptr().add(c);
                            S::store(out, S::fma(S::splat(*x), S::load(row.as_ptr().add(c)), S::load(out)));
                        }
                    }
                }
            }
        }
        most + sum.ln()
    }
}
