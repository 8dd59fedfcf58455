//! Random weights: a `config.json` alone is a model.

use std::path::PathBuf;

use crate::tiny;
use backend::cpu::{CpuBackend, CpuOptions};
use spindle_model::{Decoder, DecoderLimits, ModelSource, Opened, WeightSource, open, open_with};

fn open_random(path: &std::path::Path) -> Opened {
    open_with(&ModelSource::detect(path).unwrap(), WeightSource::Random { seed: 1 }).unwrap()
}

/// A folder with nothing but the configuration of a tiny model.
fn bare_folder(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("random-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::copy(tiny::folder(name).join("config.json"), folder.join("config.json")).unwrap();
    folder
}

#[test]
fn a_configuration_alone_loads_in_every_variant() {
    let backend = CpuBackend::new(CpuOptions { threads: 1, ..CpuOptions::default() }).unwrap();
    let limits = DecoderLimits { max_lanes: 1, max_tokens: 64, prefill_tokens: 64 };
    for name in tiny::NAMES {
        let folder = bare_folder(name);
        let opened = open_random(&folder.join("config.json"));
        let files = open(&ModelSource::Folder(folder.clone())).err().unwrap().to_string();
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(files.ends_with("it has no file tokenizer.json"), "{files}");
        assert!(opened.checkpoint.is_random() && opened.tokenizer.is_stand_in());
        let mut last = (0, 0);
        Decoder::load(&backend, &opened.checkpoint, limits, &mut |done, total| last = (done, total)).unwrap();
        assert!(0 < last.0 && last.0 == last.1, "{name}: the progress ends at {last:?}");
    }
}

#[test]
fn the_own_tokenizer_is_taken_where_there_is_one() {
    let opened = open_random(&tiny::folder("mistral"));
    assert!(opened.checkpoint.is_random() && !opened.tokenizer.is_stand_in());
    assert!(!tiny::opened("mistral").checkpoint.is_random());
}

#[test]
fn the_stand_in_tokenizer_takes_bytes() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/shapes/qwen3-14b");
    let opened = open_random(&folder);
    let tokenizer = &opened.tokenizer;
    let text = "Grüße, 42 \u{1F600}\n";
    let ids = tokenizer.encode(text, true).unwrap();
    assert_eq!(ids, text.bytes().map(u32::from).collect::<Vec<_>>());
    assert_eq!(tokenizer.decode(&ids, true).unwrap(), text);
    assert_eq!(tokenizer.decode(&[300, 151_935], true).unwrap(), "<300><151935>");
    assert_eq!(tokenizer.vocab_size(), 151_936);
    assert_eq!(opened.generation.end_tokens, [151_645]);
}

#[test]
fn the_shapes_of_the_repository_are_those_of_their_models() {
    let line = |name: &str| {
        let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/shapes").join(name);
        let opened = open_random(&folder);
        let config = opened.config();
        let parameters: usize = config.tensors().iter().map(|spec| spec.len()).sum();
        format!("{}: {parameters} parameters, {} positions", config.name, config.max_positions)
    };
    let expected = [
        "llama-3.1-8b: 8030261248 parameters, 131072 positions",
        "qwen3-8b: 8190735360 parameters, 40960 positions",
        "qwen3-14b: 14768307200 parameters, 40960 positions",
    ];
    assert_eq!(["llama-3.1-8b", "qwen3-8b", "qwen3-14b"].map(line), expected);
}
