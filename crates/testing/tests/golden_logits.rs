//! Tiny random models of every variant against logits made with the transformers library
//! (`tools/make_tiny_models.py`), in prefill and in decode.
//!
//! The bound is twice the difference between the reference's f32 logits and its logits with K and V rounded to bf16:
//! our K and V are bf16, everything else is f32.

use backend::cpu::{CpuBackend, CpuOptions, Isa};
use backend::{LaneOutput, Sampling};
use safetensors::SafeTensors;
use std::path::Path;
use testing::golden;
use testing::solo::Solo;

struct Reference {
    tokens: Vec<u32>,
    /// `[tokens][vocab]` log-probabilities.
    exact: Vec<Vec<f64>>,
    /// The same with K and V rounded to bf16.
    rounded: Vec<Vec<f64>>,
}

impl Reference {
    fn read(folder: &Path) -> Self {
        let bytes = std::fs::read(folder.join("logits.safetensors")).expect("logits.safetensors");
        let file = SafeTensors::deserialize(&bytes).expect("safetensors");
        let ids = file.tensor("input_ids").expect("input_ids");
        let width = ids.data().len() / ids.shape().iter().product::<usize>();
        let low = |b: &[u8]| u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        let log_probabilities = |name| {
            let tensor = file.tensor(name).expect("logits");
            let vocab = *tensor.shape().last().expect("two extents");
            let values: Vec<f32> = tensor.data().chunks_exact(4).map(|b| f32::from_bits(low(b))).collect();
            values.chunks_exact(vocab).map(log_softmax).collect::<Vec<_>>()
        };
        Reference {
            tokens: ids.data().chunks_exact(width).map(low).collect(),
            exact: log_probabilities("logits_f32"),
            rounded: log_probabilities("logits_kv_bf16"),
        }
    }

    /// Twice the largest difference that rounding K and V makes.
    fn bound(&self) -> f64 {
        let pairs = self.exact.iter().flatten().zip(self.rounded.iter().flatten());
        2.0 * pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max)
    }
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from(x - largest).exp()).sum();
    logits.iter().map(|x| f64::from(x - largest) - sum.ln()).collect()
}

fn error(output: &LaneOutput, want: &[f64]) -> f64 {
    assert_eq!(output.top.len(), want.len(), "every token's log-probability is reported");
    output.top.iter().map(|(token, logprob)| (f64::from(*logprob) - want[*token as usize]).abs()).fold(0.0, f64::max)
}

fn check(folder: &Path, options: CpuOptions) {
    let name = folder.file_name().expect("a name").to_string_lossy().to_string();
    let source = model::ModelSource::Folder(folder.to_path_buf());
    let opened = model::open(&source).unwrap_or_else(|e| panic!("{name}: {e}"));
    let reference = Reference::read(folder);
    let backend = CpuBackend::new(options).expect("available");
    let n = reference.tokens.len();
    let solo = || Solo::new(&backend, &opened, n + 1, "dense", |_| ());
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
    let tiny = golden::folder().join("tiny");
    let entries = std::fs::read_dir(&tiny).expect("golden/tiny");
    let mut folders: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    folders.retain(|path| path.join("logits.safetensors").is_file());
    folders.sort();
    assert!(7 <= folders.len(), "golden/tiny has a folder for every variant, found {}", folders.len());
    for folder in folders {
        for isa in [Isa::detect(), Isa::Portable] {
            check(&folder, CpuOptions { isa, threads: 2 });
        }
    }
}
