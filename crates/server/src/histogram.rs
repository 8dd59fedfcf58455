//! Counts of observations by size, as Prometheus reads them. Writers never wait.

use std::fmt::Write as _;
use std::sync::atomic::{AtomicU64, Ordering};

/// Cumulative buckets over fixed bounds.
pub(crate) struct Histogram {
    /// Ascending upper bounds; one more bucket follows for what is above.
    bounds: &'static [f64],
    /// Observations by bucket, not cumulated.
    buckets: Vec<AtomicU64>,
    /// Sum of the observations in millionths, which holds 500,000 years of seconds.
    sum_millionths: AtomicU64,
}

impl Histogram {
    pub(crate) fn new(bounds: &'static [f64]) -> Self {
        let buckets = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Histogram { bounds, buckets, sum_millionths: AtomicU64::new(0) }
    }

    /// Counts `value`, which is 0 or more.
    pub(crate) fn observe(&self, value: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_millionths.fetch_add((value.max(0.0) * 1e6).round() as u64, Ordering::Relaxed);
    }

    /// Writes the series `name` with `labels` (`a="b"`) in Prometheus' text format.
    pub(crate) fn write(&self, out: &mut String, name: &str, help: &str, labels: &str) {
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
        let mut count = 0;
        let tops = self.bounds.iter().map(f64::to_string).chain(["+Inf".to_string()]);
        for (bucket, top) in self.buckets.iter().zip(tops) {
            count += bucket.load(Ordering::Relaxed);
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{top}\"}} {count}");
        }
        let sum = self.sum_millionths.load(Ordering::Relaxed) as f64 / 1e6;
        let _ = writeln!(out, "{name}_sum{{{labels}}} {sum}\n{name}_count{{{labels}}} {count}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn observations_fall_into_the_buckets_that_hold_them() {
        let histogram = Histogram::new(&[0.1, 1.0]);
        [0.05, 0.1, 0.5, 7.0].into_iter().for_each(|value| histogram.observe(value));
        let mut text = String::new();
        histogram.write(&mut text, "wait", "Seconds.", "model=\"m\"");
        let expected = "# HELP wait Seconds.\n# TYPE wait histogram\n\
                        wait_bucket{model=\"m\",le=\"0.1\"} 2\nwait_bucket{model=\"m\",le=\"1\"} 3\n\
                        wait_bucket{model=\"m\",le=\"+Inf\"} 4\n\
                        wait_sum{model=\"m\"} 7.65\nwait_count{model=\"m\"} 4\n";
        assert_eq!(text, expected);
    }
}
