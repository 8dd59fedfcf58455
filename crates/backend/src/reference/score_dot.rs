//! Scores of mean keys.

use super::Real;

/// `q . k / sqrt(d)` for every vector of `keys` `[n, d]`.
pub fn score_dot<R: Real>(q: &[f32], keys: &[f32]) -> Vec<R> {
    let scale = R::of(1.0) / R::of(q.len() as f64).sqrt();
    let dot = |k: &[f32]| q.iter().zip(k).map(|(q, k)| R::from(*q) * R::from(*k)).sum::<R>() * scale;
    keys.chunks_exact(q.len()).map(dot).collect()
}
