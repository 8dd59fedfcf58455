//! How much of dense attention the exact tokens hold: a measurement, so plain.

use super::dot::{dots_of_eight, even_odd};
use super::runtime::{CpuRuntime, activations, rows};
use super::simd::{Kernel, Simd};
use super::softmax::LogSumExp;
use crate::{AlgorithmId, Partial, View};
use kv::{LaneId, PAGE_TOKENS, geometry};
use std::cell::RefCell;

thread_local! {
    /// Logits of every token of a lane.
    static LOGITS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// See [`crate::Runtime`]: per query head `exp(lse_exact - lse_dense)`, the dense one over the lane's whole row table.
pub(super) fn attention_mass(rt: &CpuRuntime, algorithm: AlgorithmId, layer: usize, q: View<'_>, exact: &Partial) {
    let (d, q_heads, group) = (rt.shape.geometry.head_dim, rt.shape.q_heads, rt.group());
    let mut masses: Vec<(LaneId, f64)> = Vec::new();
    let lanes = rt.lanes();
    let (q, exact) = (rows(q, lanes.active.len()), activations(&exact.lse).all());
    for (i, lane) in lanes.of(algorithm) {
        let dense: Vec<std::sync::OnceLock<f32>> = vec![std::sync::OnceLock::new(); q_heads];
        rt.threads.each(q_heads, q_heads * lane.len * d, |h| {
            let mut query = [0.0; 256];
            even_odd(&q[(i * q_heads + h) * d..][..d], &mut query[..d]);
            let lse = LOGITS.with_borrow_mut(|logits| {
                logits.clear();
                for row in &lane.kv_rows[..geometry::pages(lane.len)] {
                    let keys = &rt.frame(*row, layer, h / group)[..PAGE_TOKENS * d];
                    logits.extend(rt.isa.run(PageLogits { q: &query[..d], keys }));
                }
                rt.isa.run(LogSumExp(&logits[..lane.len]))
            });
            dense[h].set(lse).expect("one task a head");
        });
        let share = |h: usize| f64::from(exact[i * q_heads + h] - dense[h].get().expect("every head is done")).exp();
        masses.push((lanes.active[i], (0..q_heads).map(share).sum()));
    }
    drop(lanes);
    let mut lanes = rt.lanes_mut();
    for (lane, mass) in masses {
        let total = &mut lanes.lane_mut(lane).mass;
        *total = (total.0 + mass, total.1 + q_heads);
    }
}

/// Scaled logits of a page's eight tokens.
struct PageLogits<'a> {
    q: &'a [f32],
    keys: &'a [u16],
}

impl Kernel for PageLogits<'_> {
    type Output = [f32; 8];

    #[inline(always)]
    fn run<S: Simd>(self) -> [f32; 8] {
        let (d, mut out) = (self.q.len(), [0.0; 8]);
        assert!(self.keys.len() == PAGE_TOKENS * d && d.is_multiple_of(16));
        // SAFETY: eight vectors of `d` elements, by the assertion.
        unsafe {
            let [dots] = dots_of_eight::<S, 1>([self.q.as_ptr()], self.keys.as_ptr(), d, d);
            S::store(out.as_mut_ptr(), S::mul(dots, S::splat(1.0 / (d as f32).sqrt())));
        }
        out
    }
}
