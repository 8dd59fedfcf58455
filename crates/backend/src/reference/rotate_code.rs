//! The sketch: rotation, statistics, codes and what they stand for.

use super::Real;
use crate::sketch::{DEVIATION_LEAST, SketchFrame, THRESHOLD};
use half::bf16;

/// `rotation x` for every row of `x` `[n, d]`; `rotation` `[d, d]`, rows as output channels.
pub fn rotate<R: Real>(rotation: &[f32], x: &[f32], d: usize) -> Vec<R> {
    let dot = |r: &[f32], x: &[f32]| r.iter().zip(x).map(|(r, x)| R::from(*r) * R::from(*x)).sum::<R>();
    x.chunks_exact(d).flat_map(|x| rotation.chunks_exact(d).map(move |r| dot(r, x))).collect()
}

/// Mean and deviation (divided by n; at least 1e-6), before they are rounded.
pub fn statistics<R: Real>(x: &[R]) -> (R, R) {
    let n = R::of(x.len() as f64);
    let mean = x.iter().copied().sum::<R>() / n;
    let deviation = (x.iter().map(|x| (*x - mean) * (*x - mean)).sum::<R>() / n).sqrt();
    (mean, if deviation < R::from(DEVIATION_LEAST) { R::from(DEVIATION_LEAST) } else { deviation })
}

/// What a frame says, part by part, without any arithmetic.
pub struct Decoded {
    /// `[d]`
    pub key_mean: Vec<f32>,
    /// `[d]`
    pub key_deviation: Vec<f32>,
    /// `[48, d]`
    pub key_codes: Vec<u8>,
    /// `[48]`
    pub value_mean: Vec<f32>,
    /// `[48]`
    pub value_deviation: Vec<f32>,
    /// `[48, d]`
    pub value_codes: Vec<u8>,
}

impl Decoded {
    /// Takes a frame of `32 d` bytes apart.
    pub fn new(frame: &[u8]) -> Self {
        let layout = SketchFrame { head_dim: frame.len() / 32 };
        let (d, quarter) = (layout.head_dim, layout.row_bytes());
        let number = |at: usize| bf16::from_le_bytes([frame[at], frame[at + 1]]).to_f32();
        let numbers = |at: usize, step: usize, n: usize| (0..n).map(|i| number(at + step * i)).collect();
        let codes = |at: usize| {
            let code = |i: usize| frame[at + i / d * quarter + i % d % quarter] >> (2 * (i % d / quarter)) & 3;
            (0..48 * d).map(code).collect()
        };
        Decoded {
            key_mean: numbers(0, 2, d),
            key_deviation: numbers(layout.deviations(), 2, d),
            key_codes: codes(layout.key_codes()),
            value_mean: numbers(layout.value_statistics(), 4, 48),
            value_deviation: numbers(layout.value_statistics() + 2, 4, 48),
            value_codes: codes(layout.value_codes()),
        }
    }

    /// The rotated key of a token as coded.
    pub fn key<R: Real>(&self, token: usize) -> Vec<R> {
        let d = self.key_mean.len();
        let level = |c: usize| level(self.key_codes[token * d + c], self.key_mean[c], self.key_deviation[c]);
        (0..d).map(level).collect()
    }

    /// The rotated value of a token as coded.
    pub fn value<R: Real>(&self, token: usize) -> Vec<R> {
        let d = self.key_mean.len();
        let codes = &self.value_codes[token * d..(token + 1) * d];
        codes.iter().map(|code| level(*code, self.value_mean[token], self.value_deviation[token])).collect()
    }
}

/// `mean + 0.996 (code - 1.5) deviation`.
pub fn level<R: Real>(code: u8, mean: f32, deviation: f32) -> R {
    R::from(mean) + R::from(THRESHOLD) * R::of(f64::from(code) - 1.5) * R::from(deviation)
}
