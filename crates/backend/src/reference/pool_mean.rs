//! Mean keys and value sums of a page.

use super::Real;

/// Sum over the tokens of `x` `[tokens, d]`, first to last: `[d]`.
pub fn sum_of_tokens<R: Real>(x: &[f32], d: usize) -> Vec<R> {
    let column = |c: usize| x.chunks_exact(d).map(|x| R::from(x[c])).reduce(|a, b| a + b).expect("a page has tokens");
    (0..d).map(column).collect()
}

/// Their mean.
pub fn mean_of_tokens<R: Real>(x: &[f32], d: usize) -> Vec<R> {
    let tokens = R::of((x.len() / d) as f64);
    sum_of_tokens::<R>(x, d).into_iter().map(|x| x / tokens).collect()
}
