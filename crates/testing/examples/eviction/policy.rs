//! Eviction policies: what a page that a step did not select is worth.

use crate::recording::Step;
use kv::bucketed_lru::BUCKETS;
use std::collections::HashMap;

/// Who leaves. All but the first three are models, whose slots are compared by a number of any size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Policy {
    /// `kv::bucketed_lru` by age.
    AgeBuckets,
    /// `kv::bucketed_lru` by score.
    ScoreBuckets,
    /// `kv::bucketed_lru` by the score that fades.
    FadingBuckets,
    /// Least recently selected, to the step.
    ExactLru,
    /// Lowest score of this step.
    ExactScore,
    /// The score that fades, and after the step up to k / 8 of the best pages that are not there are fetched.
    FadingWithPrefetch,
    /// The page whose next use is furthest away.
    Belady,
    /// Lowest score, in `buckets` buckets of `1 / per_nat` nats.
    Buckets {
        /// Buckets of a nat.
        per_nat: f32,
        /// How many there are.
        buckets: usize,
    },
    /// Quarter-nat buckets and the age, weighed, added up; at most 63.
    ScoreAndAge {
        /// Buckets that a step of age is worth.
        weight: f64,
    },
    /// A running mean of the scores since the page came.
    MeanScore {
        /// Weight of this step's score.
        weight: f64,
    },
    /// How often the page was selected since it came, each step weighing `decay` of the one after it.
    Frequency {
        /// Of a step's weight, what a step later is left.
        decay: f64,
    },
    /// The same of the shares of attention that the scores stand for.
    Mass {
        /// Of a step's weight, what a step later is left.
        decay: f64,
    },
    /// The best score bucket since the page came, which every step makes one worse: `min(bucket, before + 1)`. In one
    /// byte nearly what `Mass` is, of a decay of `e^(-1 / per_nat)`.
    FadingScore {
        /// Buckets of a nat.
        per_nat: f32,
    },
    /// The age, but no more than the score's bucket in any step since the page was selected.
    AgeUnderScore {
        /// Buckets of a nat.
        per_nat: f32,
    },
}

/// Score buckets of a nat, as `kv::bucketed_lru` has them.
const PER_NAT: f32 = 4.0;

/// Lines of the chart.
pub(crate) const MAIN: [Policy; 7] = [
    Policy::ExactLru,
    Policy::AgeBuckets,
    Policy::ScoreBuckets,
    Policy::FadingBuckets,
    Policy::ExactScore,
    Policy::FadingWithPrefetch,
    Policy::Belady,
];

/// Other buckets and other measures, compared at the default beta.
pub(crate) const VARIANTS: [Policy; 36] = [
    buckets(8.0, 64),
    buckets(4.0, 64),
    buckets(2.0, 64),
    buckets(1.0, 64),
    buckets(8.0, 32),
    buckets(4.0, 32),
    buckets(2.0, 32),
    buckets(1.0, 32),
    buckets(4.0, 16),
    buckets(2.0, 16),
    buckets(1.0, 16),
    buckets(1.0, 8),
    Policy::ScoreAndAge { weight: 0.125 },
    Policy::ScoreAndAge { weight: 0.25 },
    Policy::ScoreAndAge { weight: 0.5 },
    Policy::ScoreAndAge { weight: 1.0 },
    Policy::MeanScore { weight: 0.5 },
    Policy::MeanScore { weight: 0.25 },
    Policy::MeanScore { weight: 0.125 },
    Policy::Frequency { decay: 0.8 },
    Policy::Frequency { decay: 0.9 },
    Policy::Frequency { decay: 0.95 },
    Policy::Frequency { decay: 0.98 },
    Policy::Mass { decay: 0.6 },
    Policy::Mass { decay: 0.8 },
    Policy::Mass { decay: 0.9 },
    Policy::Mass { decay: 0.95 },
    Policy::FadingScore { per_nat: 1.0 },
    Policy::FadingScore { per_nat: 2.0 },
    Policy::FadingScore { per_nat: 4.0 },
    Policy::FadingScore { per_nat: 6.0 },
    Policy::FadingScore { per_nat: 8.0 },
    Policy::AgeUnderScore { per_nat: 1.0 },
    Policy::AgeUnderScore { per_nat: 2.0 },
    Policy::AgeUnderScore { per_nat: 4.0 },
    Policy::AgeUnderScore { per_nat: 8.0 },
];

const fn buckets(per_nat: f32, buckets: usize) -> Policy {
    Policy::Buckets { per_nat, buckets }
}

impl Policy {
    /// As in tables.
    pub(crate) fn name(self) -> String {
        match self {
            Policy::AgeBuckets => "age buckets".to_string(),
            Policy::ScoreBuckets => "score buckets".to_string(),
            Policy::FadingBuckets => "fading score buckets".to_string(),
            Policy::ExactLru => "exact LRU".to_string(),
            Policy::ExactScore => "exact score".to_string(),
            Policy::FadingWithPrefetch => "fading, prefetch k/8".to_string(),
            Policy::Belady => "Belady".to_string(),
            Policy::Buckets { per_nat, buckets } => format!("score, {buckets} buckets of 1/{per_nat} nat"),
            Policy::ScoreAndAge { weight } => format!("score + {weight} age"),
            Policy::MeanScore { weight } => format!("running mean of scores, weight {weight}"),
            Policy::Frequency { decay } => format!("selections, decay {decay}"),
            Policy::Mass { decay } => format!("attention, decay {decay}"),
            Policy::FadingScore { per_nat } => format!("score that fades by 1/{per_nat} nat"),
            Policy::AgeUnderScore { per_nat } => format!("age under score, 1/{per_nat} nat"),
        }
    }

    /// What a page is evicted by, the largest first.
    pub(crate) fn rank(self, page: &Resident, step: usize, uses: &Uses) -> f64 {
        let age = (step - page.used) as f64;
        match self {
            Policy::AgeBuckets | Policy::ExactLru => age,
            Policy::ScoreBuckets => f64::from(kv::bucketed_lru::score_bucket(page.score)),
            Policy::ExactScore => -f64::from(page.score),
            Policy::Belady => uses.next(page.page, step) as f64,
            Policy::Buckets { per_nat, buckets } => bucket(page.score, per_nat, buckets),
            Policy::ScoreAndAge { weight } => {
                (f64::from((page.score * -PER_NAT).floor()) + (age * weight).floor()).clamp(0.0, 63.0)
            }
            Policy::MeanScore { .. } | Policy::Frequency { .. } | Policy::Mass { .. } => -page.past,
            Policy::FadingBuckets
            | Policy::FadingWithPrefetch
            | Policy::FadingScore { .. }
            | Policy::AgeUnderScore { .. } => page.past,
        }
    }
}

/// A page in a slot.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Resident {
    /// Which.
    pub(crate) page: u32,
    /// The step of its last use, counted from 1.
    pub(crate) used: usize,
    /// Its score in this step.
    pub(crate) score: f32,
    /// What the policy remembers of it since it came.
    pub(crate) past: f64,
}

impl Resident {
    /// A page that comes.
    pub(crate) fn new(policy: Policy, page: u32, used: usize, score: f32) -> Self {
        let past = match policy {
            Policy::MeanScore { .. } => bounded(score),
            Policy::Frequency { .. } => 1.0,
            Policy::Mass { .. } => f64::from(score).exp(),
            Policy::FadingWithPrefetch => bucket(score, PER_NAT, BUCKETS),
            Policy::FadingScore { per_nat } => bucket(score, per_nat, BUCKETS),
            _ => 0.0,
        };
        Resident { page, used, score, past }
    }

    /// A step later: the page's score in it, and whether it was selected.
    pub(crate) fn pass(&mut self, policy: Policy, step: usize, score: f32, is_selected: bool) {
        self.score = score;
        if is_selected {
            self.used = step;
        }
        match policy {
            Policy::MeanScore { weight } => self.past += weight * (bounded(score) - self.past),
            Policy::Frequency { decay } => self.past = decay * self.past + f64::from(u8::from(is_selected)),
            Policy::Mass { decay } => self.past = decay * self.past + f64::from(score).exp(),
            Policy::FadingWithPrefetch => self.past = (self.past + 1.0).min(bucket(score, PER_NAT, BUCKETS)),
            Policy::FadingScore { per_nat } => self.past = (self.past + 1.0).min(bucket(score, per_nat, BUCKETS)),
            Policy::AgeUnderScore { .. } if is_selected => self.past = 0.0,
            Policy::AgeUnderScore { per_nat } => self.past = (self.past + 1.0).min(bucket(score, per_nat, BUCKETS)),
            _ => {}
        }
    }
}

/// Of a score, 0 the best.
fn bucket(score: f32, per_nat: f32, buckets: usize) -> f64 {
    f64::from((score * -per_nat).floor().clamp(0.0, buckets as f32 - 1.0))
}

/// Minus infinity would stay in a mean for good.
fn bounded(score: f32) -> f64 {
    f64::from(score).max(-100.0)
}

/// When each page is selected.
pub(crate) struct Uses {
    /// Steps, ascending, counted from 1.
    of: HashMap<u32, Vec<usize>>,
    /// The number of steps.
    steps: usize,
}

impl Uses {
    /// Of one head's steps.
    pub(crate) fn new(steps: &[Step]) -> Self {
        let mut of: HashMap<u32, Vec<usize>> = HashMap::new();
        for (at, step) in steps.iter().enumerate() {
            step.pages.iter().for_each(|page| of.entry(*page).or_default().push(at + 1));
        }
        Uses { of, steps: steps.len() }
    }

    /// The first use of a page after a step; one past the end where there is none.
    fn next(&self, page: u32, step: usize) -> usize {
        let steps = self.of.get(&page).map_or(&[][..], Vec::as_slice);
        steps.get(steps.partition_point(|at| *at <= step)).copied().unwrap_or(self.steps + 1)
    }
}
