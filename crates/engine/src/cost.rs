//! How long a part of a prefill will take: a few coefficients, corrected from what was measured.
//!
//! Pure: durations come in as arguments. The first guess is conservative (too slow), so that the first unit is short;
//! from the second on, units take about what was asked for.

/// What a part of a prefill consists of, in amounts of each kind of work.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Tokens x layers through a layer's matrix products.
    pub linear: f64,
    /// Tokens through what the last layer needs of every token (QKV).
    pub last: f64,
    /// Query tokens x key tokens x layers of attention.
    pub attend: f64,
    /// Tokens x layers through Index.
    pub index: f64,
    /// Tokens x layers copied between staging and rows.
    pub copy: f64,
    /// Tokens x layers copied from tier to tier.
    pub link: f64,
    /// Prompts whose last token is sampled.
    pub sample: f64,
    /// Tokens of prompts that go through the output matrix to be scored.
    pub score: f64,
    /// Calls.
    pub fixed: f64,
}

const KINDS: usize = 9;

impl Work {
    fn amounts(&self) -> [f64; KINDS] {
        [self.linear, self.last, self.attend, self.index, self.copy, self.link, self.sample, self.score, self.fixed]
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Work) -> Work {
        Work {
            linear: self.linear + other.linear,
            last: self.last + other.last,
            attend: self.attend + other.attend,
            index: self.index + other.index,
            copy: self.copy + other.copy,
            link: self.link + other.link,
            sample: self.sample + other.sample,
            score: self.score + other.score,
            fixed: self.fixed + other.fixed,
        }
    }

    /// This work `times` times.
    #[must_use]
    pub fn times(self, times: f64) -> Work {
        Work {
            linear: self.linear * times,
            last: self.last * times,
            attend: self.attend * times,
            index: self.index * times,
            copy: self.copy * times,
            link: self.link * times,
            sample: self.sample * times,
            score: self.score * times,
            fixed: self.fixed * times,
        }
    }
}

/// Seconds per amount of each kind of work, and how well each is known.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CostModel {
    /// In the order of `Work`'s fields; changed by `observe`.
    seconds: [f64; KINDS],
    /// How much was seen of each kind, as shares of observed units; grows by `observe`.
    seen: [f64; KINDS],
    /// A decode step's seconds, smoothed; changed by `observe_decode`.
    decode_seconds: f64,
}

/// How fast a device is taken to be before anything was measured.
struct Pace {
    /// Floating-point operations a second.
    flops: f64,
    /// Bytes a second, of what is copied.
    bytes: f64,
    /// Seconds of a call.
    call: f64,
    /// Seconds of a token through the output matrix, and of a decode step.
    token: f64,
}

/// Weight of a new measurement against a well known coefficient.
const LEARNING_RATE: f64 = 0.3;

/// The most by which one measurement is believed to be off, once a kind is known: an interrupted unit is no news.
const SURPRISE_MAX: f64 = 4.0;

impl Default for CostModel {
    /// For a model of which nothing is known.
    fn default() -> Self {
        CostModel::conservative(4 << 20, 4096)
    }
}

impl CostModel {
    /// A guess for layers of `layer_parameters` weights whose attention is `attention_width` = q_heads * head_dim wide,
    /// on a slow CPU.
    pub fn conservative(layer_parameters: usize, attention_width: usize) -> Self {
        let slow = Pace { flops: 2e9, bytes: 2e9, call: 50e-6, token: 5e-3 };
        Self::at(slow, layer_parameters, attention_width)
    }

    /// The guess for a GPU: one that reaches a good part of its peak, so that the first units are long enough to.
    pub fn gpu(layer_parameters: usize, attention_width: usize) -> Self {
        let pace = Pace { flops: 1e14, bytes: 1e12, call: 10e-6, token: 1e-3 };
        Self::at(pace, layer_parameters, attention_width)
    }

    fn at(pace: Pace, layer_parameters: usize, attention_width: usize) -> Self {
        let (parameters, width) = (layer_parameters as f64, attention_width as f64);
        let linear = 2.0 * parameters / pace.flops;
        let attend = 4.0 * width / pace.flops;
        let copy = 4.0 * width / pace.bytes;
        // The output matrix counts for as much as it may for one token.
        let seconds = [linear, linear, attend, 10.0 * copy, copy, 4.0 * copy, pace.token, pace.token, pace.call];
        CostModel { seconds, seen: [0.0; KINDS], decode_seconds: pace.token }
    }

    /// Predicted seconds of some work.
    pub fn seconds(&self, work: &Work) -> f64 {
        work.amounts().iter().zip(&self.seconds).map(|(amount, seconds)| amount * seconds).sum()
    }

    /// Predicted seconds of a decode step.
    pub fn decode_seconds(&self) -> f64 {
        self.decode_seconds
    }

    /// Some work took `measured` seconds. The error goes to the kinds by their share of the prediction, so mixed units
    /// tell the coefficients apart as their mix changes; what was never seen is corrected at once.
    pub fn observe(&mut self, work: &Work, measured: f64) {
        let predicted = self.seconds(work);
        if predicted <= 0.0 || measured <= 0.0 {
            return;
        }
        for (kind, amount) in work.amounts().into_iter().enumerate() {
            let share = amount * self.seconds[kind] / predicted;
            let rate = share * LEARNING_RATE.max(1.0 - self.seen[kind]);
            let surprise = measured / predicted;
            let believed =
                if self.seen[kind] < 1.0 { surprise } else { surprise.clamp(1.0 / SURPRISE_MAX, SURPRISE_MAX) };
            self.seconds[kind] = (self.seconds[kind] * (1.0 + rate * (believed - 1.0))).max(1e-15);
            if self.seen[kind] < 1.0 && 0.0 < amount {
                // No kind takes longer than all of them together.
                self.seconds[kind] = self.seconds[kind].min(measured / amount);
            }
            self.seen[kind] = (self.seen[kind] + share).min(1.0);
        }
    }

    /// A decode step took `measured` seconds.
    pub fn observe_decode(&mut self, measured: f64) {
        self.decode_seconds += LEARNING_RATE * (measured - self.decode_seconds);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with these costs, and a model that starts far too slow or far too fast.
    fn converges(first_guess: f64) {
        let truth = |work: &Work| work.linear * 2e-5 + work.attend * 3e-8 + work.fixed * 1e-4;
        let mut model = CostModel::conservative(1 << 20, 1024);
        model.seconds.iter_mut().for_each(|seconds| *seconds *= first_guess);
        for unit in 0..40 {
            let first = 1000.0 * f64::from(unit);
            let work_of = |tokens: f64| Work { linear: tokens, attend: tokens * first, fixed: 1.0, ..Work::default() };
            let mut tokens = 32.0;
            while model.seconds(&work_of(tokens * 2.0)) < 0.050 {
                tokens *= 2.0;
            }
            let (predicted, measured) = (model.seconds(&work_of(tokens)), truth(&work_of(tokens)));
            model.observe(&work_of(tokens), measured);
            let ratio = measured / predicted;
            assert!(ratio < 2.5, "unit {unit} is long: predicted {predicted}, took {measured}, {first_guess}");
            assert!(unit < 4 || 0.4 < ratio, "unit {unit} is short: predicted {predicted}, took {measured}");
        }
    }

    #[test]
    fn units_take_about_what_was_asked_for() {
        [1.0, 0.3, 10.0].into_iter().for_each(converges);
    }

    #[test]
    fn the_first_unit_on_a_gpu_is_long_enough_to_fill_it() {
        // A layer of Llama 3.1 8B.
        let (parameters, width) = (218_103_808, 4096);
        let layer = |tokens: f64| Work { linear: tokens, attend: tokens * tokens / 2.0, fixed: 1.0, ..Work::default() };
        assert!(CostModel::gpu(parameters, width).seconds(&layer(1024.0)) < 0.010);
        assert!(0.050 < CostModel::conservative(parameters, width).seconds(&layer(1.0)));
    }

    #[test]
    fn an_interrupted_unit_is_no_news() {
        let mut model = CostModel::default();
        let work = Work { linear: 100.0, ..Work::default() };
        (0..20).for_each(|_| model.observe(&work, 0.05));
        model.observe(&work, 5.0);
        assert!(model.seconds(&work) < 0.1);
        (0..10).for_each(|_| model.observe(&work, 0.05));
        assert!((model.seconds(&work) - 0.05).abs() < 0.005);
    }
}
