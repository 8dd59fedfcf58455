//! Partials joined by log-sum-exp.

use super::Real;

/// One head's partials, each a normalised output `[d]` and the log-sum-exp of its logits (-inf for an empty one).
pub fn merge<R: Real>(a: (&[R], R), b: (&[R], R)) -> (Vec<R>, R) {
    if b.1 == R::of(f64::NEG_INFINITY) {
        return (a.0.to_vec(), a.1);
    }
    if a.1 == R::of(f64::NEG_INFINITY) {
        return (b.0.to_vec(), b.1);
    }
    let largest = if a.1 > b.1 { a.1 } else { b.1 };
    let (p, q) = ((a.1 - largest).exp(), (b.1 - largest).exp());
    let output = a.0.iter().zip(b.0).map(|(x, y)| (*x * p + *y * q) / (p + q)).collect();
    (output, largest + (p + q).ln())
}
