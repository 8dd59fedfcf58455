//! Softmax over pages, and its maximum over query heads.

use super::Real;

/// `ln sum e^x`; `x` is not empty.
pub fn log_sum_exp<R: Real>(x: &[R]) -> R {
    let most = x.iter().copied().fold(x[0], |a, b| if b > a { b } else { a });
    most + x.iter().map(|x| (*x - most).exp()).sum::<R>().ln()
}

/// `max over heads of (score - log_sum_exp(scores of the head))` for every candidate; `heads[h][candidate]`.
pub fn group_reduce<R: Real>(heads: &[Vec<f32>]) -> Vec<R> {
    let of_head = |scores: &Vec<f32>| -> Vec<R> {
        let scores: Vec<R> = scores.iter().map(|x| R::from(*x)).collect();
        let lse = log_sum_exp(&scores);
        scores.into_iter().map(|x| x - lse).collect()
    };
    let larger = |a: Vec<R>, b: Vec<R>| a.into_iter().zip(b).map(|(a, b)| if b > a { b } else { a }).collect();
    heads.iter().map(of_head).reduce(larger).expect("a group has heads")
}
