//! Matrix products.

use super::Real;

/// `x weight^T + bias`: `x` `[rows, in]`, `weight` `[out, in]`, `bias` `[out]`, to `[rows, out]`.
pub fn gemm<R: Real>(x: &[f32], weight: &[f32], bias: Option<&[f32]>, inputs: usize) -> Vec<R> {
    let mut out = Vec::new();
    for x in x.chunks_exact(inputs) {
        for (i, w) in weight.chunks_exact(inputs).enumerate() {
            let dot = x.iter().zip(w).map(|(x, w)| R::from(*x) * (*w).into()).sum::<R>();
            out.push(dot + bias.map_or(0.0, |bias| bias[i]).into());
        }
    }
    out
}
