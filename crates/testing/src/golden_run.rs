//! Golden questions asked of our engine, and the rules by which the answers are judged.

use crate::golden::{CONTEXTS, GoldenContext};
use crate::rig::{Rig, RigOptions};
use backend::Backend;
use backend::cpu::{CpuBackend, CpuOptions};
use engine::Attention;
use eval::{Document, Question};
use kv::geometry;
use model::{ModelSource, needle_text};
use serde_json::{Value, json};

/// An attention that the reference has an accuracy for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Mode {
    /// The reference's key.
    pub key: &'static str,
    /// Our algorithm.
    pub algorithm: &'static str,
    /// Share of the pages.
    pub budget: f64,
}

const fn mode(key: &'static str, algorithm: &'static str, budget: f64) -> Mode {
    Mode { key, algorithm, budget }
}

/// Dense first.
pub const MODES: [Mode; 8] = [
    mode("dense", "dense", 1.0),
    mode("shadowkv 0.06", "shadowkv", 0.06),
    mode("shadowkv 0.12", "shadowkv", 0.12),
    mode("shadowkv+estimate 0.06", "shadowkv+estimate", 0.06),
    mode("shadowkv+estimate 0.12", "shadowkv+estimate", 0.12),
    mode("sketch K2V2 0.0078", "sketch", 0.0078),
    mode("sketch K2V2 0.0156", "sketch", 0.0156),
    mode("sketch K2V2 0.03", "sketch", 0.03),
];

/// A reference margin from which on a dense answer must agree.
pub const MARGIN: f64 = 0.3;

/// How far dense accuracy may be from the reference's.
pub const DENSE_TOLERANCE: f64 = 0.015;

/// How far below the reference's a sparse accuracy may be, over all 256 questions.
pub const SPARSE_TOLERANCE: f64 = 0.03;

/// Questions that decode at once.
const AT_ONCE: usize = 32;

/// The bundled model on the CPU with room for one document of `context` tokens and its questions.
///
/// # Panics
/// The bundled model does not load.
pub fn needle_rig(context: usize, cpu: CpuOptions) -> Rig {
    let backend = CpuBackend::new(cpu).expect("the instruction set is present");
    needle_rig_on(&backend, context, RigOptions::new(AT_ONCE + 1, context + 64))
}

/// The same on any backend; the pool's size is the run's own.
///
/// # Panics
/// The bundled model does not load.
pub fn needle_rig_on(backend: &dyn Backend, context: usize, options: RigOptions) -> Rig {
    let opened = model::open(&ModelSource::Bundled).expect("the bundled model opens");
    // The document, every algorithm's summaries of it, and each question's own rows.
    let pool_rows = 2 * geometry::pages(context + 64) + 64 * (AT_ONCE + 1);
    Rig::start_on(backend, &opened, None, RigOptions { pool_rows, ..options })
}

/// The same with a pool of `share` of a document's rows, and host memory for the rest: documents and questions are at
/// home there.
///
/// # Panics
/// The bundled model does not load.
pub fn pressed_rig_on(backend: &dyn Backend, context: usize, share: f64, options: RigOptions) -> Rig {
    let opened = model::open(&ModelSource::Bundled).expect("the bundled model opens");
    let pages = geometry::pages(context + 64);
    let (pool_rows, dram_rows) = ((pages as f64 * share) as usize, 2 * pages + 64 * (AT_ONCE + 1));
    Rig::start_on(backend, &opened, None, RigOptions { pool_rows, dram_rows, ..options })
}

/// Options of such a rig on a GPU.
pub fn gpu_options(context: usize) -> RigOptions {
    RigOptions::new(AT_ONCE + 1, context + 64).on_gpu()
}

/// The whole golden table: every question of every context under every mode.
#[derive(Debug, Default)]
pub struct Table {
    /// A record a context and mode.
    pub results: Vec<Value>,
    /// Broken rules.
    pub problems: Vec<String>,
}

impl Table {
    /// Asks the rigs that `start` makes, one for each context; every finished line goes to `say`. Of documents longer
    /// than 32K, `long_documents` are read.
    ///
    /// # Panics
    /// The engine fails.
    pub fn ask(start: impl Fn(usize) -> Rig, long_documents: usize, say: &mut dyn FnMut(&str)) -> Self {
        let mut table = Table::default();
        say("| context | questions | attention | right | reference |\n| --- | ---: | --- | ---: | ---: |");
        for context in CONTEXTS {
            let golden = GoldenContext::read(context);
            let rig = start(context);
            let most = if context <= 32_768 { golden.documents() } else { long_documents };
            for tally in ask(&rig, &golden, 0..golden.documents().min(most), &MODES) {
                table.add(&golden, &tally, say);
            }
        }
        table
    }

    /// Asks rigs whose pools are too small for their documents, under every sparse mode, from 16K on; each line ends
    /// with the share of the selected pages that a slot held.
    ///
    /// # Panics
    /// The engine fails, or fetches nothing.
    pub fn ask_pressed(start: impl Fn(usize) -> Rig, long_documents: usize, say: &mut dyn FnMut(&str)) -> Self {
        let mut table = Table::default();
        say("| context | questions | attention | right | reference |\n| --- | ---: | --- | ---: | ---: |");
        for context in CONTEXTS.into_iter().filter(|context| 16_384 <= *context) {
            let golden = GoldenContext::read(context);
            let rig = start(context);
            for mode in &MODES[1..] {
                let before = rig.engine.metrics();
                let documents = 0..golden.documents().min(long_documents);
                let tallies = ask_behind(&rig, &golden, documents, std::slice::from_ref(mode), *mode);
                let metrics = rig.engine.metrics();
                let hits = metrics.page_hits_total - before.page_hits_total;
                let misses = metrics.page_misses_total - before.page_misses_total;
                assert!(0 < misses, "{context}: pages are fetched: {metrics:?}");
                table.add(&golden, &tallies[0], say);
                let last = table.results.last_mut().expect("a record was added");
                last["page_hits"] = hits.into();
                last["page_misses"] = misses.into();
                say(&format!("  {hits} hits, {misses} misses"));
            }
        }
        table
    }

    fn add(&mut self, golden: &GoldenContext, tally: &Tally, say: &mut dyn FnMut(&str)) {
        let Tally { mode, asked, .. } = tally;
        let (context, reference, accuracy) = (golden.context, golden.accuracy(mode.key), tally.accuracy());
        say(&format!("| {context} | {asked} | {} | {accuracy:.4} | {reference:.4} |", mode.key));
        // At 1K the reference's window and remainder differ too much from ours for the sparse rule to hold.
        if 4096 <= context || mode.algorithm == "dense" {
            self.problems.extend(tally.judge(golden));
        }
        self.results.push(json!({
            "context": context, "questions": asked, "attention": mode.key, "accuracy": accuracy,
            "reference": reference, "reference_dense_same_questions": tally.reference_right as f64 / *asked as f64,
            "disagreements_at_margin": tally.disagreements.len(),
        }));
    }

    /// As JSON, with what names the run.
    pub fn json(&self, device: (&str, &str)) -> Value {
        json!({(device.0): device.1, "results": self.results, "problems": self.problems})
    }
}

/// A mode as golden runs want it: no floor, no shortest context.
fn attention(rig: &Rig, mode: Mode) -> Attention {
    rig.attention(mode.algorithm, |selection| {
        selection.budget = mode.budget;
        selection.floor_tokens = 0;
        selection.min_context = 0;
    })
}

/// How one mode did over some documents of a context.
#[derive(Clone, Debug, PartialEq)]
pub struct Tally {
    /// Which mode.
    pub mode: Mode,
    /// Questions asked.
    pub asked: usize,
    /// All four digits right.
    pub right: usize,
    /// Questions of a smallest reference margin of [`MARGIN`] or more that were answered unlike the reference.
    pub disagreements: Vec<String>,
    /// Questions of the reference's dense run that were right, over the same documents.
    pub reference_right: usize,
}

impl Tally {
    /// Share right.
    pub fn accuracy(&self) -> f64 {
        self.right as f64 / self.asked as f64
    }

    /// What is wrong by the golden rules; empty if nothing is.
    pub fn judge(&self, context: &GoldenContext) -> Vec<String> {
        let name = format!("{} {}", context.context, self.mode.key);
        let mut problems = Vec::new();
        if self.mode.algorithm == "dense" {
            problems.extend(self.disagreements.iter().map(|d| format!("{name}: {d}")));
            let reference = self.reference_right as f64 / self.asked as f64;
            if DENSE_TOLERANCE + 1e-9 < (self.accuracy() - reference).abs() {
                problems.push(format!("{name}: accuracy {:.4}, the reference's is {reference:.4}", self.accuracy()));
            }
            return problems;
        }
        let reference = context.accuracy(self.mode.key);
        // The reference's accuracy is over 256 questions: a part of them adds its sampling error, two standard errors.
        let noise = match self.asked {
            256 => 0.0,
            n => 2.0 * (reference * (1.0 - reference) / n as f64).sqrt(),
        };
        if self.accuracy() < reference - SPARSE_TOLERANCE - noise - 1e-9 {
            let accuracy = self.accuracy();
            problems
                .push(format!("{name}: accuracy {accuracy:.4} of {}, the reference's is {reference:.4}", self.asked));
        }
        problems
    }
}

/// Asks the questions of documents `documents` of a context under every mode.
///
/// # Panics
/// The engine fails.
pub fn ask(rig: &Rig, context: &GoldenContext, documents: std::ops::Range<usize>, modes: &[Mode]) -> Vec<Tally> {
    ask_behind(rig, context, documents, modes, MODES[0])
}

/// The same with documents held under `of`: a sparse one's may be at home in host memory.
fn ask_behind(
    rig: &Rig,
    context: &GoldenContext,
    documents: std::ops::Range<usize>,
    modes: &[Mode],
    of: Mode,
) -> Vec<Tally> {
    let empty = |mode: &Mode| Tally { mode: *mode, asked: 0, right: 0, disagreements: Vec::new(), reference_right: 0 };
    let mut tallies: Vec<Tally> = modes.iter().map(empty).collect();
    for number in documents {
        let held = attention(rig, of);
        let document = Document::read(&rig.engine, context.document(number), held, |_, _| ()).expect("it fits");
        let golden: Vec<_> = context.questions.iter().filter(|q| q.document == number).collect();
        let questions: Vec<Question> = golden
            .iter()
            .map(|q| Question { tokens: words(&q.text), answer: digits(&q.answer), depth: q.depth })
            .collect();
        for tally in &mut tallies {
            let attention = attention(rig, tally.mode);
            let asked = eval::ask(&document, &questions, attention, AT_ONCE, false).expect("the engine works");
            for (question, outcome) in golden.iter().zip(&asked.outcomes) {
                tally.asked += 1;
                tally.right += usize::from(outcome.is_right);
                tally.reference_right += usize::from(question.dense == question.answer);
                if MARGIN <= question.margin && outcome.tokens != digits(&question.dense) {
                    let said = &outcome.tokens;
                    let (n, text, dense) = (question.document, &question.text, &question.dense);
                    tally.disagreements.push(format!("document {n}: {text} {said:?}, the reference says {dense}"));
                }
            }
        }
    }
    tallies
}

fn words(text: &str) -> Vec<u32> {
    needle_text::ids(&text.split(' ').collect::<Vec<_>>())
}

fn digits(text: &str) -> Vec<u32> {
    text.chars().map(|digit| needle_text::ids(&[&digit.to_string()])[0]).collect()
}
