//! Rotary embedding: the inverse frequencies after scaling, computed in f64.

use crate::Error;

/// Rotary embedding of one head: channel pair `i` is `(i, i + head_dim / 2)` and turns by `position * inv_freq[i]`.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeConfig {
    /// Radians per position, `[head_dim / 2]`; any scaling is already applied.
    pub inv_freq: Vec<f64>,
    /// Multiplied into cos and sin (YaRN's mscale; 1 otherwise).
    pub attention_factor: f32,
}

/// Where a scaling's numbers were read, for messages.
pub(super) struct Origin<'a> {
    pub(super) file: &'a str,
    /// The field that holds the numbers: `rope_scaling`, `rope.scaling`.
    pub(super) field: &'a str,
}

/// A scaling as the file states it.
#[derive(Clone, Debug)]
pub(super) enum Scaling {
    Default,
    Linear {
        factor: f64,
    },
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original: f64,
    },
    Yarn(Yarn),
    /// Divisors, one per pair, as GGUF's `rope_freqs.weight` carries them (Llama 3.1's scaling, precomputed).
    Divisors(Vec<f32>),
}

#[derive(Clone, Debug)]
pub(super) struct Yarn {
    pub(super) factor: f64,
    pub(super) original: f64,
    pub(super) beta_fast: f64,
    pub(super) beta_slow: f64,
    pub(super) truncate: bool,
    pub(super) attention_factor: f64,
}

/// YaRN's temperature for a context stretched by `factor`.
pub(super) fn yarn_mscale(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

impl RopeConfig {
    /// `head_dim` must be even and bounded by the caller. Errors name `origin`.
    pub(super) fn new(head_dim: usize, theta: f64, scaling: &Scaling, origin: &Origin) -> Result<Self, Error> {
        let wrong = |problem: String| Error::field(origin.file, origin.field, problem);
        if !(theta.is_finite() && 1.0 < theta) {
            return Err(wrong(format!("has a base (rope_theta) of {theta}, expected a number above 1")));
        }
        let plain: Vec<f64> = (0..head_dim / 2).map(|i| theta.powf(-2.0 * i as f64 / head_dim as f64)).collect();
        let mut attention_factor = 1.0;
        let inv_freq: Vec<f64> = match scaling {
            Scaling::Default => plain,
            Scaling::Linear { factor } => plain.iter().map(|f| f / factor).collect(),
            Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original } => {
                if high_freq_factor <= low_freq_factor {
                    return Err(wrong("has high_freq_factor not above low_freq_factor".into()));
                }
                plain.iter().map(|f| llama3(*f, *factor, *low_freq_factor, *high_freq_factor, *original)).collect()
            }
            Scaling::Yarn(yarn) => {
                attention_factor = yarn.attention_factor;
                yarn.apply(&plain, theta)
            }
            Scaling::Divisors(divisors) => {
                if divisors.len() != plain.len() {
                    return Err(wrong(format!("has {} factors, expected {}", divisors.len(), plain.len())));
                }
                plain.iter().zip(divisors).map(|(f, d)| f / f64::from(*d)).collect()
            }
        };
        let usable = |value: f64| value.is_finite() && 0.0 < value;
        if !inv_freq.iter().copied().chain([attention_factor]).all(usable) {
            return Err(wrong("gives frequencies that are not positive numbers".into()));
        }
        Ok(Self { inv_freq, attention_factor: attention_factor as f32 })
    }
}

/// Llama 3.1: long wavelengths are stretched, short ones kept, those between blended.
fn llama3(inv_freq: f64, factor: f64, low_freq_factor: f64, high_freq_factor: f64, original: f64) -> f64 {
    let wavelength = std::f64::consts::TAU / inv_freq;
    if original / low_freq_factor < wavelength {
        inv_freq / factor
    } else if wavelength < original / high_freq_factor {
        inv_freq
    } else {
        let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
        (1.0 - smooth) * inv_freq / factor + smooth * inv_freq
    }
}

impl Yarn {
    /// Pairs that turn more than `beta_fast` times over the original context keep their speed, those that turn less
    /// than `beta_slow` times are stretched, a ramp joins the two.
    fn apply(&self, plain: &[f64], theta: f64) -> Vec<f64> {
        let dim = 2.0 * plain.len() as f64;
        let pair_of = |turns: f64| dim * (self.original / (turns * std::f64::consts::TAU)).ln() / (2.0 * theta.ln());
        let (mut low, mut high) = (pair_of(self.beta_fast), pair_of(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dim - 1.0));
        if low == high {
            high += 0.001;
        }
        let stretched = |i: usize| ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
        plain.iter().enumerate().map(|(i, f)| f / self.factor * stretched(i) + f * (1.0 - stretched(i))).collect()
    }
}
