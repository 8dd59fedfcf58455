//! An axis: from values to pixels, and where its ticks are.

/// Values from `low` to `high`, on `start..end` pixels.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    low: f64,
    high: f64,
    start: f64,
    end: f64,
    is_log: bool,
}

/// From this ratio on, small values would be one line at the bottom of a linear axis.
const LOG_RATIO: f64 = 16.0;

impl Scale {
    /// Covers positive values; linear from 0, or by decades and their parts where values differ much.
    pub(crate) fn over(values: &[f64], start: f64, end: f64) -> Self {
        let least = values.iter().copied().filter(|value| 0.0 < *value).fold(f64::INFINITY, f64::min);
        let most = values.iter().copied().fold(0.0, f64::max);
        let (least, most) = if least <= most { (least, most) } else { (1.0, 1.0) };
        let is_log = LOG_RATIO <= most / least;
        let (low, high) = match is_log {
            true => (floor_125(least), ceil_125(most)),
            false => (0.0, (most / step_125(most)).ceil() * step_125(most)),
        };
        Scale { low, high, start, end, is_log }
    }

    /// The pixel of a value.
    pub(crate) fn at(&self, value: f64) -> f64 {
        let share = match self.is_log {
            true => (value.max(self.low) / self.low).ln() / (self.high / self.low).ln(),
            false => (value - self.low) / (self.high - self.low),
        };
        self.start + share * (self.end - self.start)
    }

    /// Values with a tick.
    pub(crate) fn ticks(&self) -> Vec<f64> {
        if !self.is_log {
            let step = step_125(self.high);
            return (0..=(self.high / step).round() as usize).map(|i| i as f64 * step).collect();
        }
        let all: Vec<f64> = std::iter::successors(Some(self.low), |value| Some(next_125(*value)))
            .take_while(|value| *value <= self.high * 1.001)
            .collect();
        // Three a decade are too many beyond two decades.
        let is_decade = |value: &f64| (value.log10() - value.log10().round()).abs() < 1e-6;
        if all.len() <= 7 { all } else { all.into_iter().filter(is_decade).collect() }
    }
}

/// The largest of 1, 2 and 5 times a power of ten that is not above a value.
fn floor_125(value: f64) -> f64 {
    let decade = 10f64.powf(value.log10().floor());
    [5.0, 2.0].into_iter().map(|part| part * decade).find(|part| *part <= value * 1.000_001).unwrap_or(decade)
}

fn next_125(value: f64) -> f64 {
    floor_125(value * 2.5)
}

fn ceil_125(value: f64) -> f64 {
    let floor = floor_125(value);
    if value <= floor * 1.000_001 { floor } else { next_125(floor) }
}

/// A step that makes four to ten of them up to a value.
fn step_125(value: f64) -> f64 {
    floor_125(value / 4.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(values: &[f64], ticks: &[f64]) {
        let scale = Scale::over(values, 0.0, 100.0);
        let found = scale.ticks();
        let close = |(a, b): (&f64, &f64)| (a - b).abs() <= 1e-9 * b.abs();
        assert!(found.len() == ticks.len() && found.iter().zip(ticks).all(close), "{values:?}: {found:?}");
        for value in values {
            assert!((-1e-6..=100.000_001).contains(&scale.at(*value)), "{values:?}: {value}");
        }
    }

    #[test]
    fn ticks_are_round_and_cover_the_values() {
        check(&[3.0, 7.0], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
        check(&[3.0, 7.5], &[0.0, 2.0, 4.0, 6.0, 8.0]);
        check(&[40.0], &[0.0, 10.0, 20.0, 30.0, 40.0]);
        check(&[0.5, 1.0, 2.0], &[0.0, 0.5, 1.0, 1.5, 2.0]);
        check(&[1.0, 8.0, 64.0], &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
        check(&[3.0, 90_000.0], &[10.0, 100.0, 1000.0, 10_000.0, 100_000.0]);
        check(&[], &[0.0, 0.2, 0.4, 0.6, 0.8, 1.0]);
        check(&[0.0], &[0.0, 0.2, 0.4, 0.6, 0.8, 1.0]);
    }
}
