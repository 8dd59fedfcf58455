//! `config.json`: what is read, and what is refused in which words.

use serde_json::{Value, json};
use spindle_model::ModelConfig;

/// A small configuration with some fields replaced; a replacement of `"absent"` removes the field.
fn parse(model_type: &str, changes: Value) -> Result<ModelConfig, spindle_model::Error> {
    let mut config = json!({
        "model_type": model_type, "vocab_size": 96, "hidden_size": 64, "intermediate_size": 128,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu",
        "sliding_window": null, "bos_token_id": 1, "eos_token_id": [2, 3],
    });
    for (field, value) in changes.as_object().unwrap() {
        match value.as_str() {
            Some("absent") => config.as_object_mut().unwrap().remove(field),
            _ => config.as_object_mut().unwrap().insert(field.clone(), value.clone()),
        };
    }
    ModelConfig::from_hugging_face(config.to_string().as_bytes(), "config.json", "tiny")
}

fn check(model_type: &str, changes: Value, message: &str) {
    let error = parse(model_type, changes).unwrap_err().to_string();
    assert_eq!(error, format!("config.json: {message}"));
}

#[test]
fn architectures_differ_in_biases_and_norms() {
    let flags = |model_type: &str, changes| {
        let config = parse(model_type, changes).unwrap();
        (config.qkv_bias, config.o_bias, config.qk_norm, config.tied)
    };
    assert_eq!(flags("llama", json!({})), (false, false, false, false));
    assert_eq!(flags("llama", json!({"attention_bias": true, "tie_word_embeddings": true})), (true, true, false, true));
    assert_eq!(flags("mistral", json!({})), (false, false, false, false));
    assert_eq!(flags("qwen2", json!({})), (true, false, false, false));
    assert_eq!(flags("qwen3", json!({})), (false, false, true, false));
}

#[test]
fn absent_fields_have_the_librarys_defaults() {
    let config = parse("llama", json!({"head_dim": "absent", "num_key_value_heads": "absent"})).unwrap();
    assert_eq!((config.head_dim, config.kv_heads), (16, 4));
    assert_eq!(parse("qwen3", json!({"head_dim": "absent"})).unwrap().head_dim, 128);
    assert_eq!(parse("llama", json!({"rms_norm_eps": null})).unwrap().norm_eps, 1e-6);
    assert_eq!(parse("llama", json!({"eos_token_id": 7})).unwrap().eos, [7]);
    assert_eq!(parse("llama", json!({"eos_token_id": null})).unwrap().eos, [0_u32; 0]);
    // a window that nothing in the context can leave is no window
    assert!(parse("mistral", json!({"sliding_window": 512})).is_ok());
    assert!(parse("qwen2", json!({"sliding_window": 64, "use_sliding_window": false})).is_ok());
}

#[test]
fn what_is_not_supported_is_named() {
    let supported = "which is not supported; supported:";
    check("gpt2", json!({}), &format!("model_type is gpt2, {supported} llama, mistral, qwen2, qwen3"));
    check("llama", json!({"hidden_act": "gelu"}), &format!("hidden_act is gelu, {supported} silu"));
    check("llama", json!({"mlp_bias": true}), &format!("mlp_bias is true, {supported} false for model_type llama"));
    check(
        "mistral",
        json!({"sliding_window": 128}),
        &format!("sliding_window is 128, {supported} null, or at least max_position_embeddings (512)"),
    );
    check(
        "mistral",
        json!({"sliding_window": "absent", "max_position_embeddings": 32768}),
        &format!("sliding_window is 4096, {supported} null, or at least max_position_embeddings (32768)"),
    );
    check(
        "qwen2",
        json!({"use_sliding_window": true, "sliding_window": 128, "max_window_layers": 1}),
        &format!("sliding_window is 128, {supported} null, or at least max_position_embeddings (512)"),
    );
    check(
        "qwen3",
        json!({"layer_types": ["full_attention", "sliding_attention"]}),
        &format!("layer_types is \"sliding_attention\", {supported} full_attention in every layer"),
    );
    check(
        "llama",
        json!({"num_local_experts": 8}),
        &format!("num_local_experts is 8, {supported} dense models (no experts)"),
    );
    check(
        "llama",
        json!({"quantization_config": {"quant_method": "awq"}}),
        &format!("quantization_config is awq, {supported} bf16, f16 or f32 weights, or a GGUF file"),
    );
    check("llama", json!({"head_dim": 24}), &format!("head_dim is 24, {supported} multiples of 16 up to 256"));
    check("llama", json!({"head_dim": 272}), &format!("head_dim is 272, {supported} multiples of 16 up to 256"));
    check(
        "llama",
        json!({"partial_rotary_factor": 0.5}),
        &format!("partial_rotary_factor is 0.5, {supported} 1 (every channel rotated)"),
    );
    check(
        "llama",
        json!({"rope_scaling": {"type": "dynamic", "factor": 2.0}}),
        &format!("rope_scaling.type is dynamic, {supported} default, linear, llama3, yarn"),
    );
    check(
        "llama",
        json!({"rope_parameters": {"rope_type": "longrope"}}),
        &format!("rope_parameters.rope_type is longrope, {supported} default, linear, llama3, yarn"),
    );
}

#[test]
fn wrong_values_are_named() {
    check("llama", json!({"hidden_size": "absent"}), "hidden_size is missing");
    check("llama", json!({"hidden_size": -1}), "hidden_size is -1, expected a whole number");
    check("llama", json!({"hidden_size": 0}), "hidden_size is 0, expected 1 to 131072");
    check("llama", json!({"num_hidden_layers": 100_000}), "num_hidden_layers is 100000, expected 1 to 1024");
    check(
        "llama",
        json!({"num_key_value_heads": 3}),
        "num_key_value_heads is 3, expected a divisor of the 4 attention heads",
    );
    check("qwen2", json!({"num_key_value_heads": "absent"}), "num_key_value_heads is missing");
    check(
        "llama",
        json!({"rope_theta": 0.5}),
        "rope_scaling has a base (rope_theta) of 0.5, expected a number above 1",
    );
    check("llama", json!({"rope_scaling": {"type": "linear"}}), "rope_scaling.factor is missing");
    check(
        "llama",
        json!({"rope_scaling": {"type": "linear", "factor": -2}}),
        "rope_scaling.factor is -2, expected a positive number",
    );
    check(
        "llama",
        json!({"eos_token_id": ["a"]}),
        "eos_token_id is [\"a\"], expected a token id or a list of token ids",
    );
    let error = ModelConfig::from_hugging_face(b"[1, 2", "config.json", "tiny").unwrap_err().to_string();
    assert!(error.starts_with("config.json is damaged: not valid JSON: EOF"), "{error}");
}

/// First, middle and last inverse frequency, and the attention factor.
fn rope(changes: Value) -> [f64; 4] {
    let rope = parse("llama", changes).unwrap().rope;
    assert_eq!(rope.inv_freq.len(), 16);
    [rope.inv_freq[0], rope.inv_freq[7], rope.inv_freq[15], rope.attention_factor.into()]
}

fn assert_close(found: [f64; 4], expected: [f64; 4]) {
    for (found, expected) in found.into_iter().zip(expected) {
        assert!((found - expected).abs() <= 1e-6 * expected.abs(), "{found} is not {expected}");
    }
}

#[test]
fn all_spellings_of_a_scaling_are_one() {
    let plain = rope(json!({}));
    assert_close(plain, [1.0, 10_000_f64.powf(-14.0 / 32.0), 10_000_f64.powf(-30.0 / 32.0), 1.0]);
    let linear = plain.map(|frequency| frequency / 4.0);
    let linear = [linear[0], linear[1], linear[2], 1.0];
    assert_close(rope(json!({"rope_scaling": {"type": "linear", "factor": 4.0}})), linear);
    assert_close(rope(json!({"rope_scaling": {"rope_type": "linear", "factor": 4}})), linear);
    let parameters = json!({"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0});
    assert_close(rope(json!({"rope_theta": "absent", "rope_parameters": parameters})), linear);
    assert_close(rope(json!({"rope_scaling": {"rope_type": "default"}})), plain);
}

#[test]
fn yarn_may_reach_further_than_the_stated_positions() {
    let yarn = |positions: usize| {
        let scaling = json!({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128});
        parse("qwen2", json!({"rope_scaling": scaling, "max_position_embeddings": positions})).unwrap().max_positions
    };
    assert_eq!((yarn(128), yarn(600)), (512, 600));
}
