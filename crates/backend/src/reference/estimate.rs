//! Attention over what stands for tokens.

use super::Real;
use super::group_reduce::log_sum_exp;

/// Attention over items that stand for `count` tokens each: `sum e^logit value_sum / sum count e^logit`, and
/// `ln sum count e^logit`; `value_sums[item]` is `[d]`. Zero and `None` for no item.
pub fn estimate<R: Real>(logits: &[R], value_sums: &[Vec<R>], count: usize, d: usize) -> (Vec<R>, Option<R>) {
    if logits.is_empty() {
        return (vec![R::of(0.0); d], None);
    }
    let lse = log_sum_exp(logits) + R::of(count as f64).ln();
    let channel = |c: usize| logits.iter().zip(value_sums).map(|(l, v)| (*l - lse).exp() * v[c]).sum::<R>();
    ((0..d).map(channel).collect(), Some(lse))
}

/// `rotation^T y`: back from the rotated basis.
pub fn rotate_back<R: Real>(rotation: &[f32], y: &[R]) -> Vec<R> {
    let d = y.len();
    (0..d).map(|c| (0..d).map(|j| R::from(rotation[j * d + c]) * y[j]).sum::<R>()).collect()
}
