//! Tiny random models of every variant against logits made with the transformers library
//! (`tools/make_tiny_models.py`), in prefill and in decode.
//!
//! The bound is twice the difference between the reference's f32 logits and its logits with K and V rounded to bf16:
//! our K and V are bf16, everything else is f32.

use backend::cpu::{CpuBackend, CpuOptions, Isa};
use backend::{LaneOutput, Sampling};
use testing::golden::{TinyModel, tiny_models};
use testing::solo::Solo;

fn error(output: &LaneOutput, want: &[f64]) -> f64 {
    assert_eq!(output.top.len(), want.len(), "every token's log-probability is reported");
    output.top.iter().map(|(token, logprob)| (f64::from(*logprob) - want[*token as usize]).abs()).fold(0.0, f64::max)
}

fn check(reference: &TinyModel, options: CpuOptions) {
    let TinyModel { name, opened, .. } = reference;
    let backend = CpuBackend::new(options).expect("available");
    let n = reference.tokens.len();
    let solo = || Solo::new(&backend, opened, n + 1, "dense", |_| ());
    let sampling = Sampling { top_logprobs: opened.config().vocab_size, ..Sampling::default() };
    let mut worst = 0.0_f64;
    let prompt = n / 3;
    for (end, unit) in [(1, 1), (prompt, 7), (n - 1, 64), (n, n)] {
        let output = solo().prefill(&reference.tokens[..end], unit, sampling.clone());
        worst = worst.max(error(&output, &reference.exact[end - 1]));
    }
    let mut solo = solo();
    solo.prefill_forced(&reference.tokens[..prompt], sampling, reference.tokens[prompt]);
    for position in prompt..n {
        let output = solo.step(reference.tokens.get(position + 1).copied(), false);
        worst = worst.max(error(&output, &reference.exact[position]));
    }
    let bound = reference.bound();
    println!("{name} {}: error {worst:.2e}, bound {bound:.2e}", options.isa.name());
    assert!(worst <= bound, "{name} {}: error {worst} above {bound}", options.isa.name());
}

#[test]
fn every_variant_gives_the_reference_logits() {
    let models = tiny_models();
    assert!(7 <= models.len(), "golden/tiny has a folder for every variant, found {}", models.len());
    for model in &models {
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
            check(model, CpuOptions { isa, threads: 2 });
        }
    }
}
