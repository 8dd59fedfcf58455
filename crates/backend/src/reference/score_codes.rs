//! Scores of coded tokens, with the int8 query of the op.

use super::rotate_code::Decoded;
use super::{Real, rotate_code};
use crate::sketch::THRESHOLD;

/// A query quantised for one group.
pub struct Quantised {
    /// `[d]`
    pub w8: Vec<i32>,
    /// What one unit of `w8` stands for.
    pub s: f32,
}

/// `w = q' * deviation`, `w8 = round(w * (127 / max|w|))`, ties to even: in f32, as the op does it.
pub fn quantise(rotated: &[f32], deviation: &[f32]) -> Quantised {
    let w: Vec<f32> = rotated.iter().zip(deviation).map(|(q, deviation)| q * deviation).collect();
    let most = w.iter().fold(0.0_f32, |a, w| a.max(w.abs()));
    let inverse = if most > 1e-30 { 127.0 / most } else { 0.0 };
    Quantised { w8: w.iter().map(|w| (w * inverse).round_ties_even() as i32).collect(), s: most / 127.0 }
}

/// The logits of a group's 48 tokens as the op defines them, for a rotated query `[d]`.
pub fn score_codes<R: Real>(rotated: &[f32], frame: &[u8]) -> Vec<R> {
    let decoded = Decoded::new(frame);
    let d = rotated.len();
    let Quantised { w8, s } = quantise(rotated, &decoded.key_deviation);
    let root = R::of(1.0) / R::of(d as f64).sqrt();
    let mean: R = rotated.iter().zip(&decoded.key_mean).map(|(q, mean)| R::from(*q) * R::from(*mean)).sum();
    let total: i32 = w8.iter().sum();
    let token = |codes: &[u8]| {
        let dot: i32 = w8.iter().zip(codes).map(|(w, code)| w * i32::from(*code)).sum();
        let level = R::of(f64::from(dot) - 1.5 * f64::from(total));
        level * (R::from(THRESHOLD) * R::from(s) * root) + mean * root
    };
    decoded.key_codes.chunks_exact(d).map(token).collect()
}

/// The logits without an int8 query: `q' . coded key / sqrt(d)`.
pub fn score_levels<R: Real>(q: &[f32], key_rotation: &[f32], frame: &[u8]) -> Vec<R> {
    let decoded = Decoded::new(frame);
    let rotated: Vec<R> = rotate_code::rotate(key_rotation, q, q.len());
    let root = R::of(1.0) / R::of(q.len() as f64).sqrt();
    let dot = |key: Vec<R>| rotated.iter().zip(key).map(|(q, k)| *q * k).sum::<R>() * root;
    (0..48).map(|token| dot(decoded.key(token))).collect()
}
