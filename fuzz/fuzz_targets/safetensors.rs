//! Any bytes as the safetensors file of a tiny Qwen2.
#![no_main]

use model::{Checkpoint, ModelConfig};

const CONFIG: &[u8] = include_bytes!("../../crates/testing/golden/tiny/qwen2/config.json");

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let config = ModelConfig::from_hugging_face(CONFIG, "config.json", "qwen2").expect("a golden configuration");
    let Ok(checkpoint) = Checkpoint::from_safetensors_bytes("fuzzed.safetensors", bytes.to_vec(), config) else {
        return;
    };
    for spec in checkpoint.tensors() {
        assert_eq!(checkpoint.tensor(&spec.name).expect("listed tensors were checked").to_bf16().len(), spec.len());
    }
});
