//! Every recording through every policy, and what to say about it.

use crate::policy::{MAIN, Policy, Uses, VARIANTS};
use crate::recording::Recording;
use crate::replay::{Tally, WARM_UP_STEPS, replay};
use serde_json::{Map, Value, json};
use std::path::Path;

/// Betas of Q = k (1 + beta): 0 to this one.
pub(crate) const BETA_MOST: usize = 8;

/// The default one.
pub(crate) const BETA: usize = 5;

/// Sums over the recordings of one model and algorithm, or one recording's.
pub(crate) struct Outcome {
    /// Model and algorithm.
    pub(crate) name: [String; 2],
    /// What was decoded.
    texts: Vec<String>,
    context: usize,
    heads: usize,
    steps: usize,
    /// Pages selected in a step, at most.
    pub(crate) k: usize,
    /// `[policy of MAIN][beta]`.
    pub(crate) main: Vec<Vec<Tally>>,
    /// Of each of `VARIANTS`, at the default beta.
    variants: Vec<Tally>,
}

impl Outcome {
    /// Of one recording; heads are shared by two threads.
    fn of(recording: &Recording) -> Self {
        let half = recording.heads.len().div_ceil(2);
        let k = recording.k();
        let part = |heads: &[Vec<crate::recording::Step>]| {
            let mut main = vec![vec![Tally::default(); BETA_MOST + 1]; MAIN.len()];
            let mut variants = vec![Tally::default(); VARIANTS.len()];
            for steps in heads {
                let uses = Uses::new(steps);
                let run =
                    |policy: Policy, beta: usize| replay(steps, recording.first_page, &uses, policy, k * (1 + beta));
                for (policy, tallies) in MAIN.iter().zip(&mut main) {
                    tallies.iter_mut().enumerate().for_each(|(beta, tally)| tally.add(run(*policy, beta)));
                }
                VARIANTS.iter().zip(&mut variants).for_each(|(policy, tally)| tally.add(run(*policy, BETA)));
            }
            (main, variants)
        };
        let [first, second] = std::thread::scope(|scope| {
            let threads = recording.heads.chunks(half).map(|heads| scope.spawn(move || part(heads)));
            let threads: Vec<_> = threads.collect();
            let mut parts = threads.into_iter().map(|thread| thread.join().expect("a replay"));
            [parts.next(), parts.next()]
        });
        let (main, variants) = first.expect("there are heads");
        let Recording { model, algorithm, text, context, heads, .. } = recording;
        let name = [model.clone(), algorithm.clone()];
        let texts = vec![text.clone()];
        let (heads, steps) = (heads.len(), recording.steps());
        let mut outcome = Outcome { name, texts, context: *context, heads, steps, k, main, variants };
        if let Some((main, variants)) = second {
            outcome.add(&main, &variants);
        }
        outcome
    }

    fn add(&mut self, main: &[Vec<Tally>], variants: &[Tally]) {
        self.main.iter_mut().flatten().zip(main.iter().flatten()).for_each(|(sum, tally)| sum.add(*tally));
        self.variants.iter_mut().zip(variants).for_each(|(sum, tally)| sum.add(*tally));
    }

    fn tally(&self, policy: Policy) -> Tally {
        let at = MAIN.iter().position(|other| *other == policy).expect("a main policy");
        self.main[at][BETA]
    }

    /// Misses at the default beta beside exact LRU's.
    fn beside_lru(&self, tally: Tally) -> f64 {
        tally.misses_per_step() / self.tally(Policy::ExactLru).misses_per_step()
    }

    fn json(&self) -> Value {
        let list = |tallies: &[Tally], of: fn(&Tally) -> f64, digits: f64| -> Vec<f64> {
            tallies.iter().map(|tally| (of(tally) * digits).round() / digits).collect()
        };
        let policy = |(policy, tallies): (&Policy, &Vec<Tally>)| {
            let mut value = json!({
                "hit_ratio": list(tallies, Tally::hit_ratio, 1e4),
                "misses_per_step": list(tallies, Tally::misses_per_step, 1e3),
                "misses_beside_exact_lru_at_default_beta": round(self.beside_lru(tallies[BETA])),
            });
            if *policy == Policy::FadingWithPrefetch {
                value["prefetched_per_step"] = json!(list(tallies, Tally::prefetched_per_step, 1e3));
            }
            (policy.name(), value)
        };
        let variant = |(policy, tally): (&Policy, &Tally)| (policy.name(), json!(round(self.beside_lru(*tally))));
        json!({
            "model": self.name[0], "algorithm": self.name[1], "texts": self.texts, "context": self.context,
            "heads": self.heads, "steps": self.steps, "k": self.k,
            "policies": MAIN.iter().zip(&self.main).map(policy).collect::<Map<_, _>>(),
            "variants_misses_beside_exact_lru_at_default_beta":
                VARIANTS.iter().zip(&self.variants).map(variant).collect::<Map<_, _>>(),
        })
    }

    /// Its line of the table at the default beta.
    fn line(&self) -> String {
        let lru = self.tally(Policy::ExactLru).misses_per_step();
        let beside = |policy| self.beside_lru(self.tally(policy));
        let prefetched = self.tally(Policy::FadingWithPrefetch).prefetched_per_step();
        format!(
            "| {} | {} | {} | {} | {lru:.2} | {:.3} | {:.3} | {:.3} | {:.3} | {:.3} ({:.2} k) | {:.3} |",
            self.name[0],
            self.name[1],
            if self.texts.len() == 1 { &self.texts[0] } else { "all" },
            self.k,
            beside(Policy::AgeBuckets),
            beside(Policy::ScoreBuckets),
            beside(Policy::FadingBuckets),
            beside(Policy::ExactScore),
            beside(Policy::FadingWithPrefetch),
            prefetched / self.k as f64,
            beside(Policy::Belady),
        )
    }
}

fn round(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}

/// Replays every recording of a folder; the outcomes of recordings, and their sums by model and algorithm.
pub(crate) fn outcomes(folder: &Path) -> [Vec<Outcome>; 2] {
    let entries = std::fs::read_dir(folder).expect("a folder of recordings");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "selections"));
    paths.sort();
    println!(
        "| model | algorithm | text | k | exact LRU | age | score | fading score | exact score | prefetch | Belady |"
    );
    println!("| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |");
    let (mut each, mut sums): (Vec<Outcome>, Vec<Outcome>) = Default::default();
    for path in paths {
        let recording = Recording::read(&path).unwrap_or_else(|e| panic!("cannot read {}: {e}", path.display()));
        let outcome = Outcome::of(&recording);
        println!("{}", outcome.line());
        match sums.iter_mut().find(|sum| sum.name == outcome.name) {
            Some(sum) => {
                sum.add(&outcome.main, &outcome.variants);
                sum.texts.extend(outcome.texts.iter().cloned());
                sum.steps += outcome.steps;
            }
            None => sums.push(Outcome {
                name: outcome.name.clone(),
                texts: outcome.texts.clone(),
                main: outcome.main.clone(),
                variants: outcome.variants.clone(),
                ..outcome
            }),
        }
        each.push(outcome);
    }
    for sum in &sums {
        println!("{}", sum.line());
    }
    [each, sums]
}

/// The result file: an outcome a line.
pub(crate) fn json([each, sums]: &[Vec<Outcome>; 2], commit: &str, date: &str) -> String {
    let head = json!({
        "what": "eviction policies of a sparsely resident sequence's slots, replayed on selections of real decodes",
        "hardware": "CPU only; nothing is timed",
        "command": "eviction record-needle FOLDER; eviction record FOLDER MODEL NAME=FILES...; eviction replay FOLDER",
        "commit": commit, "date": date, "betas": (0..=BETA_MOST).collect::<Vec<_>>(), "default_beta": BETA,
        "warm_up_steps_not_counted": WARM_UP_STEPS,
    });
    let lines = |outcomes: &[Outcome]| {
        let lines: Vec<String> = outcomes.iter().map(|outcome| format!("  {}", outcome.json())).collect();
        format!("[\n{}\n ]", lines.join(",\n"))
    };
    let fields = head.as_object().expect("an object").iter();
    let fields: String = fields.map(|(name, value)| format!(" \"{name}\": {value},\n")).collect();
    format!("{{\n{fields} \"by_model_and_algorithm\": {},\n \"by_recording\": {}\n}}\n", lines(sums), lines(each))
}
