//! The tiny models of `tools/make_tiny_models.py`: every variant opens, and its rotary embedding is that of
//! `transformers`.

use std::path::PathBuf;

use backend::TensorData;
use spindle_model::{ModelSource, Opened, open};

pub(crate) const NAMES: [&str; 7] =
    ["llama", "llama3-scaled", "llama-linear", "mistral", "qwen2", "qwen2-yarn", "qwen3"];

pub(crate) fn folder(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../testing/golden/tiny").join(name)
}

pub(crate) fn opened(name: &str) -> Opened {
    let source = ModelSource::detect(&folder(name)).unwrap();
    assert_eq!(source, ModelSource::Folder(folder(name)));
    open(&source).unwrap()
}

#[test]
fn every_variant_is_what_its_script_says() {
    let line = |name: &str| {
        let opened = opened(name);
        let config = opened.config();
        let flags = [
            (config.tied, "tied"),
            (config.qkv_bias, "qkv bias"),
            (config.o_bias, "o bias"),
            (config.qk_norm, "qk norm"),
        ];
        let flags: Vec<&str> = flags.into_iter().filter(|(set, _)| *set).map(|(_, name)| name).collect();
        let heads = format!("{}/{} x {}", config.q_heads, config.kv_heads, config.head_dim);
        format!("{name}: {} {heads}, mlp {}, {}", config.architecture.name(), config.mlp, flags.join(", "))
    };
    let expected = [
        "llama: llama 2/1 x 32, mlp 128, tied",
        "llama3-scaled: llama 4/2 x 32, mlp 96, ",
        "llama-linear: llama 2/1 x 64, mlp 96, tied, qkv bias, o bias",
        "mistral: mistral 4/2 x 32, mlp 96, ",
        "qwen2: qwen2 2/1 x 64, mlp 96, tied, qkv bias",
        "qwen2-yarn: qwen2 4/2 x 32, mlp 96, qkv bias",
        "qwen3: qwen3 2/1 x 128, mlp 64, tied, qk norm",
    ];
    assert_eq!(NAMES.map(line), expected);
}

#[test]
fn every_tensor_is_read() {
    for name in NAMES {
        let checkpoint = opened(name).checkpoint;
        for spec in checkpoint.tensors() {
            let tensor = checkpoint.tensor(&spec.name).unwrap();
            assert_eq!(tensor.shape, spec.shape);
            assert!(matches!(tensor.data, TensorData::Bf16(_)));
            assert!(tensor.data.to_f32().iter().all(|value| value.is_finite()));
        }
        let output = checkpoint.tensor("lm_head.weight").unwrap();
        assert_eq!(output.name, "lm_head.weight");
        let embedding = checkpoint.tensor("model.embed_tokens.weight").unwrap();
        assert_eq!(output.data.to_bf16() == embedding.data.to_bf16(), checkpoint.config().tied, "{name}");
    }
}

#[test]
fn rotary_frequencies_are_those_of_the_reference() {
    for name in NAMES {
        let golden = std::fs::read(folder(name).join("logits.safetensors")).unwrap();
        let golden = safetensors::SafeTensors::deserialize(&golden).unwrap();
        let values = |tensor: &str| -> Vec<f32> {
            let bytes = golden.tensor(tensor).unwrap().data();
            bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect()
        };
        let rope = opened(name).config().rope.clone();
        let reference = values("inv_freq");
        assert_eq!(rope.inv_freq.len(), reference.len());
        for (found, expected) in rope.inv_freq.iter().zip(reference) {
            // the reference computes in f32: powers and quotients of up to four roundings
            assert!((found / f64::from(expected) - 1.0).abs() < 1e-6, "{name}: {found} is not {expected}");
        }
        assert!((rope.attention_factor - values("attention_factor")[0]).abs() < 1e-7, "{name}");
    }
}

#[test]
fn shards_are_one_model() {
    let whole = opened("mistral").checkpoint;
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("shards-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    for file in ["config.json", "tokenizer.json"] {
        std::fs::copy(folder("mistral").join(file), directory.join(file)).unwrap();
    }
    let bytes = std::fs::read(folder("mistral").join("model.safetensors")).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap().tensors();
    let mut map = serde_json::Map::new();
    for (shard, part) in tensors.chunks(tensors.len().div_ceil(3)).enumerate() {
        let file = format!("model-{shard}.safetensors");
        map.extend(part.iter().map(|(name, _)| (name.clone(), file.clone().into())));
        let views = part.iter().map(|(name, view)| (name.clone(), view));
        safetensors::serialize_to_file(views, None, &directory.join(file)).unwrap();
    }
    let index = serde_json::json!({"metadata": {}, "weight_map": map});
    std::fs::write(directory.join("model.safetensors.index.json"), index.to_string()).unwrap();

    let shards = open(&ModelSource::Folder(directory.clone())).unwrap().checkpoint;
    for spec in whole.tensors() {
        let (found, expected) = (shards.tensor(&spec.name).unwrap(), whole.tensor(&spec.name).unwrap());
        assert!(found.data.to_bf16() == expected.data.to_bf16(), "{} differs", spec.name);
    }
    assert_eq!(shards.stored_bytes_total(), whole.stored_bytes_total());
    drop(shards);
    std::fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn other_float_types_are_widened_and_rounded() {
    use safetensors::{Dtype, tensor::TensorView};
    let whole = opened("qwen2");
    let config = whole.config().clone();
    let stored: Vec<(String, Vec<usize>, Vec<u8>, Dtype)> = (whole.checkpoint.tensors().into_iter().enumerate())
        .map(|(i, spec)| {
            let values = whole.checkpoint.tensor(&spec.name).unwrap().data.to_f32();
            // f32 with a tail that rounds away; f16 where every bf16 value of this model fits it
            match i % 2 {
                0 => {
                    let bytes = values.iter().flat_map(|value| (value * 1.0001).to_le_bytes()).collect();
                    (spec.name, spec.shape, bytes, Dtype::F32)
                }
                _ => {
                    let bytes = values.iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes()).collect();
                    (spec.name, spec.shape, bytes, Dtype::F16)
                }
            }
        })
        .collect();
    let views = stored
        .iter()
        .map(|(name, shape, bytes, dtype)| (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    let file = safetensors::serialize(views, None).unwrap();
    let mixed = spindle_model::Checkpoint::from_safetensors_bytes("mixed", file, config).unwrap();
    for (name, _, _, dtype) in &stored {
        let (found, expected) = (mixed.tensor(name).unwrap(), whole.checkpoint.tensor(name).unwrap());
        assert!(matches!(found.data, TensorData::F32(_)));
        let tolerance = if *dtype == Dtype::F32 { 0.004 } else { 0.0 };
        for (found, expected) in found.data.to_bf16().iter().zip(expected.data.to_f32().iter()) {
            let error = (found.to_f32() - expected).abs();
            assert!(error <= tolerance * expected.abs() + 3e-8, "{name}: {found} is not {expected}");
        }
    }
}
