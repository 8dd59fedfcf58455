//! Exact attention of one KV head's group, over any set of tokens.

use super::Real;

/// Softmax of scaled logits over all tokens, times values: `q` `[group, d]`, `k` and `v` `[tokens, d]`, to the output
/// `[group, d]` and the log-sum-exp of the scaled logits `[group]`.
pub fn attend<R: Real>(q: &[f32], k: &[f32], v: &[f32], d: usize) -> (Vec<R>, Vec<R>) {
    let scale = R::of(1.0) / R::of(d as f64).sqrt();
    let (mut output, mut lse) = (Vec::new(), Vec::new());
    for q in q.chunks_exact(d) {
        let dot = |k: &[f32]| q.iter().zip(k).map(|(q, k)| R::from(*q) * (*k).into()).sum::<R>() * scale;
        let logits: Vec<R> = k.chunks_exact(d).map(dot).collect();
        let largest = logits.iter().copied().fold(logits[0], |a, b| if b > a { b } else { a });
        let weights: Vec<R> = logits.iter().map(|x| (*x - largest).exp()).collect();
        let sum = weights.iter().copied().sum::<R>();
        let column = |c: usize| weights.iter().zip(v.chunks_exact(d)).map(|(w, v)| *w * v[c].into()).sum::<R>() / sum;
        output.extend((0..d).map(column));
        lse.push(largest + sum.ln());
    }
    (output, lse)
}
