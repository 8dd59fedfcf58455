//! `cargo xtask golden`: the whole golden table, as Markdown on standard output and as JSON in the file named.

use backend::cpu::{CpuOptions, Isa};
use serde_json::json;
use testing::golden::GoldenContext;
use testing::golden_run::{MODES, Tally, ask, needle_rig};

/// Contexts with the documents that are asked about.
const TABLE: [(usize, usize); 6] = [(1024, 16), (4096, 16), (16384, 8), (32768, 8), (65536, 1), (131_072, 1)];

fn main() {
    let json_path = std::env::args().nth(1);
    let mut results = Vec::new();
    let mut problems = Vec::new();
    println!("| context | questions | attention | right | reference |\n| --- | ---: | --- | ---: | ---: |");
    for (context, documents) in TABLE {
        let golden = GoldenContext::read(context);
        let rig = needle_rig(context, CpuOptions::default());
        for tally in ask(&rig, &golden, 0..documents, &MODES) {
            let reference = golden.accuracy(tally.mode.key);
            let Tally { mode, asked, .. } = &tally;
            println!("| {context} | {asked} | {} | {:.4} | {reference:.4} |", mode.key, tally.accuracy());
            // At 1K the reference's window and remainder differ too much from ours for the sparse rule to hold.
            if 4096 <= context || mode.algorithm == "dense" {
                problems.extend(tally.judge(&golden));
            }
            results.push(json!({
                "context": context, "questions": asked, "attention": mode.key, "accuracy": tally.accuracy(),
                "reference": reference, "reference_dense_same_questions": tally.reference_right as f64 / *asked as f64,
                "disagreements_at_margin": tally.disagreements.len(),
            }));
        }
    }
    if let Some(path) = json_path {
        let text = json!({"instruction_set": Isa::detect().name(), "results": results, "problems": problems});
        std::fs::write(&path, format!("{text:#}\n")).unwrap_or_else(|e| panic!("cannot write {path}: {e}"));
    }
    for problem in &problems {
        println!("PROBLEM {problem}");
    }
    assert!(problems.is_empty(), "{} golden rules are broken", problems.len());
}
