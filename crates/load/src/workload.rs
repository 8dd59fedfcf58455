//! Which requests come, and when: lengths, groups and arrival times from a seed.
//!
//! Runs of one list share lengths, groups and the shape of the arrivals, so that rates are compared on the same
//! requests; their prompts differ, so that none finds another run's in a cache.

use crate::lengths::WorkloadLengths;
use crate::random::Random;
use serde::Serialize;
use std::time::Duration;

/// How requests arrive.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Load {
    /// A closed loop: so many requests run at once, and the next is sent when one ends.
    Concurrency(usize),
    /// An open loop: a Poisson process of so many requests a second, whatever the server does.
    Rate(f64),
}

/// One request to come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Arrival {
    /// From 0, in order of arrival.
    pub(crate) index: u64,
    /// Since the start of the run; zero in a closed loop.
    pub(crate) after: Duration,
    pub(crate) prompt_tokens: usize,
    pub(crate) max_tokens: usize,
    /// Which shared prefix it has, from 0.
    pub(crate) group: u64,
}

/// Arrivals without end.
pub(crate) struct Workload {
    lengths: WorkloadLengths,
    groups: u64,
    load: Load,
    random: Random,
    /// A stream of its own, so that lengths are the same in a closed loop.
    arrivals: Random,
    index: u64,
    seconds: f64,
}

impl Workload {
    pub(crate) fn load(&self) -> Load {
        self.load
    }

    pub(crate) fn new(lengths: WorkloadLengths, groups: u64, load: Load, seed: u64) -> Self {
        let (random, arrivals) = (Random::new(&[seed, 0]), Random::new(&[seed, 1]));
        Workload { lengths, groups, load, random, arrivals, index: 0, seconds: 0.0 }
    }
}

impl Iterator for Workload {
    type Item = Arrival;

    fn next(&mut self) -> Option<Arrival> {
        let arrival = Arrival {
            index: self.index,
            after: Duration::from_secs_f64(self.seconds),
            prompt_tokens: self.lengths.prompt.draw(&mut self.random),
            max_tokens: self.lengths.completion.draw(&mut self.random),
            group: self.random.below(self.groups),
        };
        self.index += 1;
        if let Load::Rate(rate) = self.load {
            // The first request comes at once; times between requests are exponential.
            self.seconds += -(1.0 - self.arrivals.unit()).ln() / rate;
        }
        Some(arrival)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lengths::Lengths;

    fn workload(load: Load, seed: u64) -> Workload {
        let lengths =
            WorkloadLengths { prompt: Lengths::Uniform { least: 10, most: 90 }, completion: Lengths::Fixed(5) };
        Workload::new(lengths, 3, load, seed)
    }

    #[test]
    fn a_seed_repeats_and_loads_share_its_lengths() {
        let lengths =
            |load, seed| workload(load, seed).take(50).map(|a| (a.prompt_tokens, a.group)).collect::<Vec<_>>();
        assert_eq!(lengths(Load::Rate(2.0), 1), lengths(Load::Concurrency(8), 1));
        assert_ne!(lengths(Load::Rate(2.0), 1), lengths(Load::Rate(2.0), 2));
        assert!(lengths(Load::Rate(2.0), 1).iter().all(|(_, group)| *group < 3));
        assert!(workload(Load::Concurrency(8), 1).take(50).all(|a| a.after == Duration::ZERO));
    }

    #[test]
    fn arrivals_are_a_poisson_process() {
        let times: Vec<f64> = workload(Load::Rate(4.0), 1).take(20_001).map(|a| a.after.as_secs_f64()).collect();
        assert!(times.is_sorted());
        let gaps: Vec<f64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = gaps.iter().sum::<f64>() / gaps.len() as f64;
        let deviation = (gaps.iter().map(|gap| (gap - mean).powi(2)).sum::<f64>() / gaps.len() as f64).sqrt();
        assert!((0.24..0.26).contains(&mean), "{mean}");
        assert!((0.95..1.05).contains(&(deviation / mean)), "{deviation}");
    }
}
