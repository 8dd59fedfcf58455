//! Sixty-four sequences decode at once on a pool with room for the K and V of 16 of them: how fast, beside a pool with
//! room for all, and whether they answer the same.
//!
//! ```text
//! pressure                                the whole measurement, printed
//! pressure CONTEXT                        with documents of another size
//! pressure CONTEXT COMMIT DATE JSON       and written to a file
//! ```
//!
//! Both engines read their prompts first. Then they decode in turns, a few steps each, so that what the machine does
//! beside it meets both alike; only steps in which all sequences run are counted.

mod requests;

mod side;

mod report;

use backend::Backend;
use backend::cpu::{CpuBackend, CpuOptions};
use model::ModelSource;
use report::Outcome;
use requests::{CONTEXT, Workload};
use side::{Pool, Side};
use std::path::Path;

const ALGORITHMS: [&str; 2] = ["shadowkv", "sketch"];

/// Turns of each engine.
const TURNS: usize = 32;

/// Decode steps of a turn.
const TURN_STEPS: usize = 8;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let context = words.first().map_or(CONTEXT, |word| word.parse().expect("a number of tokens"));
    let backend = CpuBackend::new(CpuOptions::default()).expect("the instruction set is present");
    let outcomes = ALGORITHMS.map(|algorithm| {
        let outcome = measure(&backend, algorithm, context);
        println!("{}", outcome.text());
        outcome
    });
    if let [_, commit, date, path] = words[..] {
        let device = backend.info().description;
        let json = report::json(&outcomes, context, &device, commit, date);
        std::fs::write(Path::new(path), json).unwrap_or_else(|e| panic!("cannot write {path}: {e}"));
    }
}

/// One algorithm on both pools.
fn measure(backend: &CpuBackend, algorithm: &str, context: usize) -> Outcome {
    let opened = model::open(&ModelSource::Bundled).expect("the bundled model opens");
    let workload = Workload::new(&opened, algorithm, context);
    let mut roomy = Side::start(backend, &opened, &workload, Pool::Roomy);
    let mut pressed = Side::start(backend, &opened, &workload, Pool::Pressed);
    roomy.read_prompts();
    pressed.read_prompts();
    let before = pressed.metrics();
    let mut turns = Vec::new();
    for turn in 0..TURNS {
        // Who goes first changes, so that a drift of the machine cancels out.
        let pair = if turn % 2 == 0 {
            let first = roomy.decode(TURN_STEPS);
            [first, pressed.decode(TURN_STEPS)]
        } else {
            let first = pressed.decode(TURN_STEPS);
            [roomy.decode(TURN_STEPS), first]
        };
        turns.push(pair);
    }
    let after = pressed.metrics();
    let pools = [roomy.metrics(), after];
    assert_eq!(pools[0].page_misses_total, 0, "who has room for every page fetches none");
    assert!(roomy.finish() == pressed.finish(), "{algorithm}: where pages are has changed an answer");
    Outcome { algorithm: algorithm.to_string(), demand: workload.sizes(), turns, before, after, pools }
}
