//! GGUF files written by the reference package hold the same models as their Hugging Face folders.

use std::path::{Path, PathBuf};

use backend::TensorData;
use spindle_model::{Checkpoint, ModelConfig, ModelSource, open, open_gguf_bytes};

use crate::gguf_writer::{Field, GgufWriter};
use crate::tiny;

const SPLIT: [&str; 3] = ["qwen3-00001-of-00003.gguf", "qwen3-00002-of-00003.gguf", "qwen3-00003-of-00003.gguf"];

fn open_gguf(path: &Path) -> Result<spindle_model::Opened, spindle_model::Error> {
    let source = ModelSource::detect(path)?;
    assert_eq!(source, ModelSource::Gguf(path.to_owned()));
    open(&source)
}

/// What a GGUF file cannot say, or says in other words, set to what the folder says.
fn same_names(config: &ModelConfig, folder: &ModelConfig) -> ModelConfig {
    let (name, bos, eos) = (folder.name.clone(), folder.bos, folder.eos.clone());
    ModelConfig { name, bos, eos, norm_eps: folder.norm_eps, ..config.clone() }
}

fn assert_same_weights(gguf: &Checkpoint, folder: &Checkpoint) {
    assert_eq!(same_names(gguf.config(), folder.config()), *folder.config());
    assert!((gguf.config().norm_eps - folder.config().norm_eps).abs() < 1e-9);
    for spec in folder.tensors() {
        let (found, expected) = (gguf.tensor(&spec.name).unwrap(), folder.tensor(&spec.name).unwrap());
        assert_eq!(found.shape, expected.shape);
        assert!(found.data.to_bf16() == expected.data.to_bf16(), "{} differs", spec.name);
    }
}

#[test]
fn a_llama_has_its_rows_in_order_again() {
    let path = tiny::folder("llama").join("llama.gguf");
    let gguf = open_gguf(&path).unwrap();
    assert_eq!(gguf.config().name, "tiny llama");
    assert_same_weights(&gguf.checkpoint, &tiny::opened("llama").checkpoint);
}

#[test]
fn any_part_opens_a_split_model() {
    let folder = tiny::opened("qwen3").checkpoint;
    for part in SPLIT {
        assert_same_weights(&open_gguf(&tiny::folder("qwen3").join(part)).unwrap().checkpoint, &folder);
    }
}

#[test]
fn a_part_that_is_missing_or_foreign_is_named() {
    let directory = scratch("split");
    let copy = |from: usize, to: usize| {
        std::fs::copy(tiny::folder("qwen3").join(SPLIT[from]), directory.join(SPLIT[to])).unwrap();
    };
    copy(0, 0);
    copy(2, 2);
    let failure = || open_gguf(&directory.join(SPLIT[0])).err().unwrap().to_string();
    assert!(failure().ends_with("this part 2 of 3 is missing; download all parts into one folder"), "{}", failure());
    copy(2, 1);
    let expected = "split.no is 2, but the file's name says 1; are parts of two models mixed?";
    assert!(failure().ends_with(expected), "{}", failure());
    std::fs::remove_dir_all(&directory).unwrap();
}

/// A new folder below the build's own scratch space.
fn scratch(name: &str) -> PathBuf {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    directory
}

#[test]
fn every_truncation_is_an_error() {
    let bytes = std::fs::read(tiny::folder("llama").join("llama.gguf")).unwrap();
    // every length of the header, then strides through the tensors
    for length in (0..12_000).chain((12_000..bytes.len()).step_by(997)) {
        let error = open_gguf_bytes("cut.gguf", bytes[..length].to_vec()).err();
        let error = error.unwrap_or_else(|| panic!("{length} bytes of {} opened", bytes.len())).to_string();
        assert!(error.starts_with("cut.gguf is damaged: "), "{length}: {error}");
    }
}

#[test]
fn rope_freqs_divide_the_frequencies() {
    let mut file = GgufWriter::llama();
    let divisors = [1.0_f32, 1.0, 1.0, 2.0, 2.0, 4.0, 8.0, 8.0];
    let bytes = divisors.iter().flat_map(|divisor| divisor.to_le_bytes()).collect();
    file.raw_tensor("rope_freqs.weight", vec![8], 0, bytes);
    let opened = open_gguf_bytes("a.gguf", file.bytes()).unwrap();
    for (pair, (found, divisor)) in opened.config().rope.inv_freq.iter().zip(divisors).enumerate() {
        let expected = 10_000_f64.powf(-2.0 * pair as f64 / 16.0) / f64::from(divisor);
        assert!((found / expected - 1.0).abs() < 1e-12);
    }
}

#[test]
fn scalings_of_the_metadata() {
    let mut file = GgufWriter::llama();
    file.set("llama.rope.scaling.type", Field::Text("linear"));
    file.set("llama.rope.scaling.factor", Field::F32(4.0));
    let linear = open_gguf_bytes("a.gguf", file.bytes()).unwrap().config().rope.clone();
    assert_eq!((linear.inv_freq[0], linear.attention_factor), (0.25, 1.0));

    file.set("llama.rope.scaling.type", Field::Text("yarn"));
    file.set("llama.rope.scaling.original_context_length", Field::U32(32));
    let yarn = open_gguf_bytes("a.gguf", file.bytes()).unwrap();
    let json = br#"{"model_type": "llama", "vocab_size": 8, "hidden_size": 32, "intermediate_size": 32,
        "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}}"#;
    let folder = ModelConfig::from_hugging_face(json, "config.json", "llama").unwrap();
    assert_eq!(yarn.config().rope, folder.rope);
    assert_eq!(yarn.config().max_positions, 128);
}

#[test]
fn versions_2_and_3_are_one_layout() {
    let mut file = GgufWriter::llama();
    file.version = 2;
    let opened = open_gguf_bytes("a.gguf", file.bytes()).unwrap();
    let q = opened.checkpoint.tensor("model.layers.0.self_attn.q_proj.weight").unwrap();
    let TensorData::F32(values) = &q.data else { panic!("stored as f32") };
    // rows 0, 2, 4, … of the file's first head come first
    let rows: Vec<f32> = values.chunks(32).map(|row| row[0] / 32.0).collect();
    assert_eq!(rows[..10], [0.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 1.0, 3.0]);
    assert_eq!(rows[16..18], [16.0, 18.0]);
}
