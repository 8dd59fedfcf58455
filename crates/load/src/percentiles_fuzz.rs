//! Percentiles against a count of the samples that are not above them.

use crate::percentiles::Percentiles;
use crate::random::Random;

/// The smallest sample that at least this share of all samples does not exceed.
fn model(samples: &[f64], percent: usize) -> f64 {
    let covers = |value: f64| samples.len() * percent <= 100 * samples.iter().filter(|s| **s <= value).count();
    samples.iter().copied().filter(|value| covers(*value)).fold(f64::INFINITY, f64::min)
}

#[test]
fn every_percentile_is_the_models() {
    for seed in 0..1000 {
        let mut random = Random::new(&[seed]);
        // Eighths: exact in binary, so that sums have no order.
        let seconds: Vec<f64> = (0..1 + random.below(250)).map(|_| random.below(50) as f64 / 8.0).collect();
        let found = Percentiles::of_seconds(seconds.clone()).expect("there are samples");
        for (percent, value) in [(50, found.p50), (90, found.p90), (95, found.p95), (99, found.p99), (100, found.max)] {
            assert_eq!(value, 1e3 * model(&seconds, percent), "seed {seed}: p{percent}");
        }
        assert_eq!(found.mean, 1e3 * (seconds.iter().sum::<f64>() / seconds.len() as f64), "seed {seed}");
    }
}

#[test]
fn no_sample_has_no_percentile() {
    assert_eq!(Percentiles::of_seconds(Vec::new()), None);
    let one = Percentiles::of_seconds(vec![0.5]).expect("a sample");
    assert_eq!((one.mean, one.p50, one.p99, one.max), (500.0, 500.0, 500.0, 500.0));
}
