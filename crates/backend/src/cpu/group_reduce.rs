//! One page score per KV head.
//!
//! `reduced[page] = max over the group's heads of log softmax(page)`: the logarithm keeps the order of the softmax
//! itself and does not underflow. The softmax runs over the candidates only.

use super::runtime::CpuRuntime;
use super::simd::{Kernel, Simd};
use super::softmax::LogSumExp;
use crate::AlgorithmId;
use kv::selection::Selected;

/// See [`crate::Runtime`].
pub(super) fn group_reduce(rt: &CpuRuntime, algorithm: AlgorithmId) {
    let lanes = rt.lanes();
    let lanes = lanes.of(algorithm);
    let (heads, q_heads, group) = (rt.shape.geometry.kv_heads, rt.shape.q_heads, rt.group());
    let cost = lanes.iter().map(|(_, lane)| 16 * q_heads * lane.selection.indexed_pages(lane.len)).sum();
    rt.threads.each(lanes.len() * heads, cost, |task| {
        let ((i, lane), head) = (&lanes[task / heads], task % heads);
        let Selected::Pages { sink, indexed, .. } = lane.selection.at(lane.len) else { return };
        let at = (i * heads + head) * rt.work.max_pages;
        // SAFETY: this task alone writes this head's scores.
        let reduced = unsafe { rt.work.reduced.part(at + sink..at + indexed) };
        for h in 0..group {
            let at = (i * q_heads + head * group + h) * rt.work.max_pages;
            let scores = &rt.work.page_scores.all()[at + sink..at + indexed];
            let lse = rt.isa.run(LogSumExp(scores));
            rt.isa.run(Raise { scores, lse, reduced, first: h == 0 });
        }
    });
}

/// `reduced = max(reduced, scores - lse)`; without a maximum for the first head.
struct Raise<'a> {
    scores: &'a [f32],
    lse: f32,
    reduced: &'a mut [f32],
    first: bool,
}

impl Kernel for Raise<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        for (reduced, score) in self.reduced.iter_mut().zip(self.scores) {
            let score = score - self.lse;
            *reduced = if self.first || score > *reduced { score } else { *reduced };
        }
    }
}
