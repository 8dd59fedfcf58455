//! How long prompts and completions are.
//!
//! The two workloads of the SPIN paper are published as three numbers a side: shortest, mean and longest. What meets
//! all three here is a Beta(1, b) stretched over the range, `least + (most - least) * (1 - (1 - u)^(1 / b))` for a
//! uniform u: its mean is `least + (most - least) / (1 + b)`, so b follows from the mean, and it has no other parameter
//! to choose. The shape is ours and not the data sets'.

use crate::random::Random;
use serde::Serialize;

/// A distribution of lengths, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Lengths {
    /// Always this many.
    Fixed(usize),
    /// Every length of the range alike, both ends included.
    Uniform {
        /// Shortest.
        least: usize,
        /// Longest.
        most: usize,
    },
    /// The stretched Beta(1, b) with this mean.
    Spread {
        /// Shortest.
        least: usize,
        /// Mean.
        mean: usize,
        /// Longest.
        most: usize,
    },
}

/// Lengths that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LengthsError {
    /// A prompt or a completion of no token.
    #[error("a length is 1 token or more")]
    Zero,
    /// A range from more to less.
    #[error("a range goes from the shorter length to the longer one")]
    Reversed,
}

/// The lengths of both sides of a named workload.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct WorkloadLengths {
    /// Of prompts.
    pub prompt: Lengths,
    /// Of completions.
    pub completion: Lengths,
}

const K: usize = 1024;

impl WorkloadLengths {
    /// LongBench-v2 as the SPIN paper used it: long documents, answers of some thousand tokens.
    pub const LONGBENCH_V2: WorkloadLengths = WorkloadLengths {
        prompt: Lengths::Spread { least: 32 * K, mean: 55 * K, most: 120 * K },
        completion: Lengths::Spread { least: K / 2, mean: 5 * K, most: 15 * K },
    };

    /// LongGenBench as the SPIN paper used it: shorter documents, long answers.
    pub const LONGGENBENCH: WorkloadLengths = WorkloadLengths {
        prompt: Lengths::Spread { least: 16 * K, mean: 18 * K, most: 19 * K },
        completion: Lengths::Spread { least: 7 * K, mean: 12 * K, most: 32 * K },
    };
}

impl Lengths {
    /// Checks what a distribution needs.
    ///
    /// # Errors
    /// A length of zero, or a range that goes down.
    pub fn check(&self) -> Result<(), LengthsError> {
        let (least, mean, most) = self.bounds();
        match 0 < least {
            false => Err(LengthsError::Zero),
            true if mean < least || most < mean => Err(LengthsError::Reversed),
            true => Ok(()),
        }
    }

    /// All lengths times `factor`, at least one token each; for models and machines that are small.
    #[must_use]
    pub fn scaled(&self, factor: f64) -> Self {
        let scaled = |tokens: usize| ((tokens as f64 * factor).round() as usize).max(1);
        match *self {
            Lengths::Fixed(tokens) => Lengths::Fixed(scaled(tokens)),
            Lengths::Uniform { least, most } => Lengths::Uniform { least: scaled(least), most: scaled(most) },
            Lengths::Spread { least, mean, most } => {
                Lengths::Spread { least: scaled(least), mean: scaled(mean), most: scaled(most) }
            }
        }
    }

    /// The longest length that can be drawn.
    #[must_use]
    pub fn most(&self) -> usize {
        self.bounds().2
    }

    /// (shortest, mean, longest)
    fn bounds(&self) -> (usize, usize, usize) {
        match *self {
            Lengths::Fixed(tokens) => (tokens, tokens, tokens),
            Lengths::Uniform { least, most } => (least, least.midpoint(most), most),
            Lengths::Spread { least, mean, most } => (least, mean, most),
        }
    }

    pub(crate) fn draw(&self, random: &mut Random) -> usize {
        match *self {
            Lengths::Fixed(tokens) => tokens,
            Lengths::Uniform { least, most } => least + random.below((most - least + 1) as u64) as usize,
            Lengths::Spread { least, mean, most } if least == mean || mean == most => mean,
            Lengths::Spread { least, mean, most } => {
                let range = (most - least) as f64;
                let shape = range / (mean - least) as f64 - 1.0;
                let share = 1.0 - (1.0 - random.unit()).powf(1.0 / shape);
                least + (range * share).round() as usize
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DRAWS: usize = 40_000;

    fn check(lengths: Lengths) {
        let (least, mean, most) = lengths.bounds();
        let mut random = Random::new(&[3]);
        let drawn: Vec<usize> = (0..DRAWS).map(|_| lengths.draw(&mut random)).collect();
        let (shortest, longest) = (drawn.iter().min(), drawn.iter().max());
        assert!(Some(&least) <= shortest && longest <= Some(&most), "{lengths:?}: {shortest:?} to {longest:?}");
        let measured = drawn.iter().sum::<usize>() as f64 / DRAWS as f64;
        let mut squares = drawn.iter().map(|tokens| (*tokens as f64 - measured).powi(2)).sum::<f64>() / DRAWS as f64;
        squares = squares.max(1.0);
        // Five standard errors of the mean.
        let error = 5.0 * (squares / DRAWS as f64).sqrt();
        assert!((measured - mean as f64).abs() <= error + 0.5, "{lengths:?}: mean {measured}");
        // Within 2 % of both ends of a distribution that is wide.
        if 1000 < most - least {
            let near = (most - least) / 50;
            assert!(*shortest.expect("drawn") < least + near, "{lengths:?}: {shortest:?}");
            assert!(most - 8 * near < *longest.expect("drawn"), "{lengths:?}: {longest:?}");
        }
    }

    #[test]
    fn least_mean_and_most_are_met() {
        for workload in [WorkloadLengths::LONGBENCH_V2, WorkloadLengths::LONGGENBENCH] {
            for lengths in [workload.prompt, workload.completion] {
                check(lengths);
                check(lengths.scaled(1.0 / 64.0));
                assert_eq!(lengths.scaled(0.01).check(), Ok(()));
            }
        }
        check(Lengths::Fixed(17));
        check(Lengths::Uniform { least: 1, most: 2 });
        check(Lengths::Uniform { least: 100, most: 5000 });
        check(Lengths::Spread { least: 5, mean: 5, most: 9 });
        check(WorkloadLengths::LONGBENCH_V2.completion.scaled(1e-6));
    }

    #[test]
    fn what_cannot_be_is_refused() {
        assert_eq!(Lengths::Fixed(0).check(), Err(LengthsError::Zero));
        assert_eq!(Lengths::Uniform { least: 0, most: 4 }.check(), Err(LengthsError::Zero));
        assert_eq!(Lengths::Uniform { least: 9, most: 4 }.check(), Err(LengthsError::Reversed));
        assert_eq!(Lengths::Spread { least: 1, mean: 9, most: 4 }.check(), Err(LengthsError::Reversed));
        assert_eq!(Lengths::Uniform { least: 4, most: 4 }.check(), Ok(()));
    }
}
