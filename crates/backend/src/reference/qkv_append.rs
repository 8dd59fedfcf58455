//! Head norms and rotary embedding.

use super::Real;
use super::elementwise::rms_norm;
use crate::Rope;

/// Norms (where given) one head `[d]`, then turns element `i` with element `i + d / 2` by `position * inv_freq[i]`.
/// Values pass unchanged and need no function; keys and values are then rounded to bf16.
pub fn norm_and_rope<R: Real>(x: &[f32], norm: Option<(&[f32], f32)>, rope: &Rope, position: usize) -> Vec<R> {
    let x: Vec<R> = x.iter().map(|x| (*x).into()).collect();
    let mut x = norm.map(|(norm, eps)| rms_norm(&x, norm, eps)).unwrap_or(x);
    let half = x.len() / 2;
    let factor = f64::from(rope.attention_factor);
    for (i, inv_freq) in rope.inv_freq.iter().enumerate() {
        let angle = position as f64 * inv_freq;
        let (cos, sin) = (R::of(angle.cos() * factor), R::of(angle.sin() * factor));
        let (a, b) = (x[i], x[i + half]);
        (x[i], x[i + half]) = (a * cos - b * sin, b * cos + a * sin);
    }
    x
}
