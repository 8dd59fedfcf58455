//! Ops that work element by element or row by row.

use super::Real;

/// `x / sqrt(mean(x^2) + eps) * norm` of one row; all `[n]`.
pub fn rms_norm<R: Real>(x: &[R], norm: &[f32], eps: f32) -> Vec<R> {
    let mean = x.iter().map(|x| *x * *x).sum::<R>() / R::of(x.len() as f64);
    let rms = (mean + eps.into()).sqrt();
    x.iter().zip(norm).map(|(x, w)| *x / rms * (*w).into()).collect()
}

/// `x += delta` in f32 (as every backend stores it), then [`rms_norm`] of one row; all `[hidden]`.
pub fn add_norm<R: Real>(x: &mut [f32], delta: Option<&[f32]>, norm: &[f32], eps: f32) -> Vec<R> {
    for (x, d) in x.iter_mut().zip(delta.unwrap_or_default()) {
        *x += d;
    }
    rms_norm(&x.iter().map(|x| (*x).into()).collect::<Vec<R>>(), norm, eps)
}

/// `gate / (1 + e^-gate) * up`, of `[gate | up]` `[2 mlp]` to `[mlp]`.
pub fn silu_mul<R: Real>(gate_up: &[f32]) -> Vec<R> {
    let (gate, up) = gate_up.split_at(gate_up.len() / 2);
    let silu = |x: R| x / (R::of(1.0) + (-x).exp());
    gate.iter().zip(up).map(|(gate, up)| silu((*gate).into()) * (*up).into()).collect()
}
