//! Partials joined by log-sum-exp.

use super::runtime::{CpuRuntime, activations};
use crate::{AlgorithmId, Partial};

/// See [`crate::Runtime`].
pub(super) fn merge(rt: &CpuRuntime, algorithm: AlgorithmId, into: &Partial, other: &Partial) {
    let (heads, d) = (rt.shape.q_heads, rt.shape.geometry.head_dim);
    let lanes = rt.lanes();
    let lanes = lanes.of(algorithm);
    let (output, lse) = (activations(&other.output).all(), activations(&other.lse).all());
    rt.threads.each(lanes.len(), lanes.len() * heads * (d + 64), |task| {
        let row = lanes[task].0;
        for head in row * heads..(row + 1) * heads {
            let part = head * d..(head + 1) * d;
            // SAFETY: this task alone has this lane's heads.
            let (into_output, into_lse) = unsafe {
                let lse = activations(&into.lse).part(head..head + 1);
                (activations(&into.output).part(part.clone()), &mut lse[0])
            };
            join(into_output, into_lse, &output[part], lse[head]);
        }
    });
}

/// Joins one head's partials: outputs normalised, an empty one's log-sum-exp -inf.
pub(super) fn join(into: &mut [f32], into_lse: &mut f32, other: &[f32], other_lse: f32) {
    if other_lse == f32::NEG_INFINITY {
        return;
    }
    if *into_lse == f32::NEG_INFINITY {
        into.copy_from_slice(other);
        *into_lse = other_lse;
        return;
    }
    let largest = into_lse.max(other_lse);
    let (a, b) = ((*into_lse - largest).exp(), (other_lse - largest).exp());
    let sum = a + b;
    let (a, b) = (a / sum, b / sum);
    for (x, y) in into.iter_mut().zip(other) {
        *x = *x * a + y * b;
    }
    *into_lse = largest + sum.ln();
}
