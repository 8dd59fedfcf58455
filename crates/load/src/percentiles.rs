//! Exact percentiles: all samples are kept and sorted.

use serde::Serialize;

/// The distribution of samples, in milliseconds. A percentile is the smallest sample that is not below that share of
/// all (nearest rank), so it is always one that was measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Percentiles {
    /// Of all samples.
    pub mean: f64,
    /// Half of the samples are not above it.
    pub p50: f64,
    /// 90 % of the samples are not above it.
    pub p90: f64,
    /// 95 % of the samples are not above it.
    pub p95: f64,
    /// 99 % of the samples are not above it.
    pub p99: f64,
    /// The largest.
    pub max: f64,
}

impl Percentiles {
    /// Of samples in seconds; none where there is no sample.
    #[must_use]
    pub fn of_seconds(mut samples: Vec<f64>) -> Option<Self> {
        samples.sort_unstable_by(f64::total_cmp);
        let ms = |seconds: f64| 1e3 * seconds;
        let rank = |percent: usize| ms(samples[(samples.len() * percent).div_ceil(100).max(1) - 1]);
        let max = ms(*samples.last()?);
        let mean = ms(samples.iter().sum::<f64>() / samples.len() as f64);
        Some(Percentiles { mean, p50: rank(50), p90: rank(90), p95: rank(95), p99: rank(99), max })
    }
}
