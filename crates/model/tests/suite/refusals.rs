//! What is refused when a model is opened, and in which words.

use std::path::PathBuf;

use spindle_model::{ModelSource, open, open_gguf_bytes};

use crate::gguf_writer::{Field, GgufWriter};

fn check(change: impl Fn(&mut GgufWriter), message: &str) {
    let mut file = GgufWriter::llama();
    change(&mut file);
    let error = open_gguf_bytes("a.gguf", file.bytes()).err().expect(message).to_string();
    assert_eq!(error, format!("a.gguf{message}"));
}

#[test]
fn gguf_fields() {
    assert!(open_gguf_bytes("a.gguf", GgufWriter::llama().bytes()).is_ok());
    let supported = "which is not supported; supported:";
    check(|file| file.version = 1, &format!(": the GGUF version is 1, {supported} 2, 3"));
    check(
        |file| file.version = 3_u32.swap_bytes(),
        &format!(": the byte order is big-endian, {supported} little-endian"),
    );
    check(
        |file| file.set("general.architecture", Field::Text("gemma2")),
        &format!(": general.architecture is gemma2, {supported} llama, qwen2, qwen3"),
    );
    check(|file| file.remove("llama.block_count"), ": llama.block_count is missing");
    check(
        |file| file.set("llama.block_count", Field::Text("many")),
        ": llama.block_count is \"many\", expected a whole number",
    );
    check(
        |file| file.set("llama.expert_count", Field::U32(8)),
        &format!(": llama.expert_count is 8, {supported} dense models (no experts)"),
    );
    check(
        |file| file.set("llama.attention.sliding_window", Field::U32(16)),
        &format!(": llama.attention.sliding_window is 16, {supported} 0, or at least the context length (64)"),
    );
    check(
        |file| file.set("llama.rope.dimension_count", Field::U32(8)),
        &format!(": llama.rope.dimension_count is 8, {supported} 16, the width of a head"),
    );
    check(
        |file| file.set("llama.rope.scaling.type", Field::Text("longrope")),
        &format!(": llama.rope.scaling.type is longrope, {supported} none, linear, yarn"),
    );
    check(
        |file| file.set("llama.attention.head_count_kv", Field::F32s(vec![1.0, 2.0])),
        &format!(
            ": llama.attention.head_count_kv is different in every layer, {supported} the same number for all layers"
        ),
    );
    check(
        |file| file.set("llama.logit_scale", Field::F32(0.5)),
        &format!(": llama.logit_scale is 0.5, {supported} files without this field"),
    );
    check(
        |file| file.set("tokenizer.ggml.model", Field::Text("bert")),
        &format!(": tokenizer.ggml.model is bert, {supported} gpt2 (byte-level BPE), llama (SentencePiece BPE)"),
    );
    check(
        |file| file.set("tokenizer.ggml.pre", Field::Text("tekken")),
        &format!(": tokenizer.ggml.pre is tekken, {supported} llama-bpe, qwen2, smollm, gpt-2, default"),
    );
    check(
        |file| file.set("tokenizer.ggml.bos_token_id", Field::U32(8)),
        ": tokenizer.ggml.bos_token_id is 8, but there are 8 tokens",
    );
}

#[test]
fn gguf_tensors() {
    check(
        |file| file.remove_tensor("blk.0.ffn_up.weight"),
        " has no tensor blk.0.ffn_up.weight, which its configuration needs",
    );
    check(
        |file| file.tensor("blk.0.ffn_up.weight", 32, 64),
        ": tensor blk.0.ffn_up.weight has shape [32, 64], but its configuration makes it [32, 32]",
    );
    check(
        |file| file.tensor("blk.0.ffn_up.bias", 0, 32),
        " has a tensor blk.0.ffn_up.bias, which a llama decoder does not use; is this another kind of model?",
    );
    let supported = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K";
    for (kind, name) in [(10, "Q2_K"), (20, "IQ4_NL"), (24, "I8"), (77, "type 77")] {
        check(
            |file| file.raw_tensor("blk.0.ffn_up.weight", vec![32, 32], kind, vec![0; 64]),
            &format!(
                ": the type of tensor blk.0.ffn_up.weight is {name}, which is not supported; supported: {supported}"
            ),
        );
    }
    check(
        |file| file.raw_tensor("blk.0.ffn_up.weight", vec![16, 64], 2, vec![0; 576]),
        " is damaged: tensor blk.0.ffn_up.weight has rows of 16 values, not a multiple of 32",
    );
    check(
        |file| file.raw_tensor("x", vec![1 << 40, 1 << 40], 0, Vec::new()),
        &format!(
            " is damaged: tensor x of shape {:?} ends beyond any file, but the file has {} bytes; download it again",
            [1_u64 << 40, 1 << 40],
            {
                let mut file = GgufWriter::llama();
                file.raw_tensor("x", vec![1 << 40, 1 << 40], 0, Vec::new());
                file.bytes().len()
            }
        ),
    );
}

#[test]
fn paths() {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("paths-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let check = |file: &str, bytes: &[u8], message: &str| {
        let path = directory.join(file);
        std::fs::write(&path, bytes).unwrap();
        let error = ModelSource::detect(&path).unwrap_err().to_string();
        assert_eq!(error, format!("{} is not a model that can be loaded: {message}", path.display()));
    };
    check("a.gguf", b"GGML", "it does not begin with GGUF's four letters; download it again");
    check("empty.gguf", b"", "it does not begin with GGUF's four letters; download it again");
    check("a.safetensors", b"12345678", "give the folder that holds it, not the file");
    check(
        "pytorch_model.bin",
        b"PK\x03\x04",
        "it holds Python pickles, which can run code and are not read; \
         give a folder with model.safetensors, or a GGUF file",
    );
    check("notes.txt", b"hello", "it is neither a Hugging Face model folder nor a GGUF file");
    let error = ModelSource::detect(&directory).unwrap_err().to_string();
    assert!(
        error.ends_with("the folder has no config.json; give a Hugging Face model folder or a GGUF file"),
        "{error}"
    );
    let error = ModelSource::detect(&directory.join("nothing")).unwrap_err().to_string();
    assert!(error.starts_with("cannot read "), "{error}");
    std::fs::remove_dir_all(&directory).unwrap();
}

/// Copies a tiny folder, changes it, and compares the end of the message with which it is refused.
fn check_folder(change: impl Fn(&std::path::Path), ending: &str) {
    let name = format!("folder-{}-{:?}", std::process::id(), std::thread::current().id());
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::create_dir_all(&directory).unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(crate::tiny::folder("mistral").join(file), directory.join(file)).unwrap();
    }
    change(&directory);
    let error = open(&ModelSource::Folder(directory.clone())).err().expect(ending).to_string();
    std::fs::remove_dir_all(&directory).unwrap();
    assert!(error.ends_with(ending), "{error}");
}

#[test]
fn folders() {
    let rename = |from: &'static str, to: &'static str| {
        move |folder: &std::path::Path| std::fs::rename(folder.join(from), folder.join(to)).unwrap()
    };
    let replace = |file: &'static str, from: &'static str, to: &'static str| {
        move |folder: &std::path::Path| {
            let text = std::fs::read_to_string(folder.join(file)).unwrap();
            assert!(text.contains(from));
            std::fs::write(folder.join(file), text.replace(from, to)).unwrap();
        }
    };
    check_folder(
        rename("model.safetensors", "weights.safetensors"),
        "it has neither model.safetensors nor model.safetensors.index.json",
    );
    check_folder(
        rename("model.safetensors", "pytorch_model.bin"),
        "pytorch_model.bin holds Python pickles, which can run code and are not read; \
         convert it to model.safetensors first",
    );
    check_folder(rename("tokenizer.json", "tokenizer.model"), "it has no file tokenizer.json");
    check_folder(
        replace("config.json", "\"intermediate_size\": 96", "\"intermediate_size\": 80"),
        "tensor model.layers.0.mlp.gate_proj.weight has shape [96, 64], but its configuration makes it [80, 64]",
    );
    check_folder(
        replace("config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3"),
        "has no tensor model.layers.2.input_layernorm.weight, which its configuration needs",
    );
    check_folder(
        replace("config.json", "\"num_hidden_layers\": 2", "\"num_hidden_layers\": 1"),
        "has a tensor model.layers.1.input_layernorm.weight, which a mistral decoder does not use; \
         is this another kind of model?",
    );
    check_folder(
        |folder| {
            let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
            std::fs::write(folder.join("model.safetensors"), &bytes[..bytes.len() - 100]).unwrap();
        },
        "its safetensors header cannot be read (incomplete metadata, file not fully covered); download the file again",
    );
    check_folder(
        |folder| {
            std::fs::remove_file(folder.join("model.safetensors")).unwrap();
            let index = r#"{"weight_map": {"a": "model-1.safetensors", "b": "../model-2.safetensors"}}"#;
            std::fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
        },
        "weight_map.b is \"../model-2.safetensors\", expected the name of a .safetensors file beside it",
    );
    check_folder(
        |folder| {
            std::fs::remove_file(folder.join("model.safetensors")).unwrap();
            let index = r#"{"weight_map": {"a": "model-1.safetensors"}}"#;
            std::fs::write(folder.join("model.safetensors.index.json"), index).unwrap();
        },
        "model.safetensors.index.json lists model-1.safetensors, which is not there; download the missing file",
    );
}
