//! `gpu greedy`: greedy tokens of the bundled model on documents of 1K to 32K, CPU against GPU: the share that is
//! equal, and the margin at which each text that is not first chose otherwise.

use crate::arguments::Arguments;
use backend::cpu::{CpuBackend, CpuOptions};
use backend::{Backend, DeviceInfo};
use engine::Attention;
use model::{ModelSource, needle_text};
use serde_json::json;
use testing::golden::GoldenContext;
use testing::golden_run::MARGIN;
use testing::greedy::{Choice, Comparison, ask, request};
use testing::rig::{Rig, RigOptions};

/// Contexts, and how many documents of each.
const DOCUMENTS: [(usize, usize); 4] = [(1024, 8), (4096, 4), (16_384, 2), (32_768, 1)];

/// Questions of a document.
const QUESTIONS: usize = 4;

/// Tokens of a text: the answer, and what the model goes on with.
const TOKENS: usize = 32;

/// Attentions.
const MODES: [(&str, f64); 3] = [("dense", 1.0), ("shadowkv", 0.12), ("sketch", 0.03)];

/// What was asked, and the text.
type Texts = Vec<(String, Vec<Choice>)>;

/// Compares; whether every difference is explained by its margin.
pub(crate) fn run(arguments: &Arguments) -> bool {
    let cpu = CpuBackend::new(CpuOptions::default()).expect("the instruction set is present");
    let gpu = arguments.backend(true, None);
    let mut comparisons = MODES.map(|_| Comparison::default());
    for (context, documents) in DOCUMENTS {
        let options = RigOptions::new(2, context + 128);
        // A document, its question and answer twice, and every algorithm's summaries.
        let options = RigOptions { pool_rows: 4 * kv::geometry::pages(context + 128), ..options };
        let want = texts(&cpu, options, context, documents);
        let got = texts(gpu.as_ref(), options.on_gpu(), context, documents);
        for (i, ((what, want), (_, got))) in want.iter().zip(&got).enumerate() {
            comparisons[i % MODES.len()].add(what.clone(), want, got);
        }
        println!("{context}: {} texts", want.len());
    }
    let mut unexplained = Vec::new();
    for ((name, budget), comparison) in MODES.iter().zip(&comparisons) {
        println!("{name} {budget}: {}", comparison.summary());
        for (what, difference) in &comparison.differences {
            let (at, margin, want, got) = (difference.at, difference.margin(), difference.want, difference.got);
            println!("  {what}: token {at} is {} and not {}, margin {margin:.4}", got.token, want.token);
        }
        // Of pages that score alike, either may be selected: that moves logits further than rounding does.
        let explained = if *name == "dense" { MARGIN } else { 2.0 * MARGIN };
        unexplained.extend(comparison.unexplained(explained as f32));
    }
    arguments.write(&json!({
        "cpu": description(&cpu), "gpu": description(gpu.as_ref()), "tokens_of_a_text": TOKENS,
        "modes": MODES.iter().zip(&comparisons).map(|((name, budget), comparison)| json!({
            "attention": name, "budget": budget, "texts": comparison.texts, "tokens_compared": comparison.compared,
            "differences": comparison.differences.iter().map(|(what, difference)| json!({
                "text": what, "token": difference.at, "margin": difference.margin(),
            })).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "unexplained": unexplained,
    }));
    unexplained.iter().for_each(|difference| println!("PROBLEM {difference}"));
    unexplained.is_empty()
}

fn description(backend: &dyn Backend) -> String {
    let DeviceInfo { kind, description } = backend.info();
    format!("{kind}: {description}")
}

/// The texts of all modes behind some documents of a context, question by question.
fn texts(backend: &dyn Backend, options: RigOptions, context: usize, documents: usize) -> Texts {
    let opened = model::open(&ModelSource::Bundled).expect("the bundled model opens");
    let rig = Rig::start_on(backend, &opened, None, options);
    let golden = GoldenContext::read(context);
    let mut texts = Texts::new();
    for document in 0..documents {
        let questions = golden.questions.iter().filter(|question| question.document == document);
        for (number, question) in questions.take(QUESTIONS).enumerate() {
            for (name, budget) in MODES {
                let mut tokens = golden.document(document);
                tokens.extend(needle_text::ids(&question.text.split(' ').collect::<Vec<_>>()));
                let request = request(tokens, attention(&rig, name, budget), TOKENS);
                let what = format!("{context}-{document}, question {number}, {name} {budget}");
                texts.push((what, ask(&rig, request)));
            }
        }
    }
    texts
}

fn attention(rig: &Rig, name: &str, budget: f64) -> Attention {
    rig.attention(name, |selection| {
        selection.budget = budget;
        selection.floor_tokens = 0;
        selection.min_context = 0;
    })
}
