//! The needle model's golden questions through the whole engine. The full table is `cargo xtask golden`.

use backend::cpu::CpuOptions;
use std::ops::Range;
use testing::golden::GoldenContext;
use testing::golden_run::{MODES, Mode, ask, needle_rig};

fn check(context: usize, documents: Range<usize>, modes: &[Mode]) {
    let golden = GoldenContext::read(context);
    let rig = needle_rig(context, CpuOptions::default());
    let tallies = ask(&rig, &golden, documents, modes);
    let mut problems = Vec::new();
    for tally in &tallies {
        println!("{context} {}: {:.4} of {}", tally.mode.key, tally.accuracy(), tally.asked);
        problems.extend(tally.judge(&golden));
    }
    assert!(problems.is_empty(), "{}", problems.join("\n"));
}

#[test]
fn all_of_1k_dense() {
    check(1024, 0..16, &MODES[..1]);
}

#[test]
fn all_of_4k() {
    check(4096, 0..16, &MODES);
}

#[test]
fn two_documents_of_16k() {
    check(16384, 0..2, &MODES);
}

#[test]
fn one_document_of_32k_dense() {
    check(32768, 0..1, &MODES[..1]);
}
