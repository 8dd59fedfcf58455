//! The binary as its user meets it: bad flags get an error that names them, an exit code, and no panic; a pipe may
//! close; a prompt gets its answer.

use std::io::Write;
use std::process::{Command, Output, Stdio};

fn spindle(args: &[&str], input: Option<&str>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spindle"));
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    let mut stdin = child.stdin.take().expect("piped");
    // A binary that refuses its flags does not read its input.
    let _ = stdin.write_all(input.unwrap_or("").as_bytes());
    drop(stdin);
    child.wait_with_output().expect("it ends")
}

#[test]
fn bad_flags_are_refused_by_name() {
    let check = |args: &[&str], wanted: &str| {
        let output = spindle(args, None);
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{args:?} succeeds");
        assert!(text.contains(wanted), "{args:?}: no '{wanted}' in: {text}");
        assert!(!text.contains("panicked"), "{args:?}: {text}");
    };
    let run =
        |more: &[&'static str]| -> Vec<&'static str> { [&["run", "--prompt", "what is the code"], more].concat() };
    check(&run(&["--attention", "skech"]), "dense, shadowkv, shadowkv+estimate, sketch");
    check(&run(&["--budget", "120%"]), "share between 0 and 100%");
    check(&run(&["--kv-memory", "1KiB"]), "--kv-memory 1.0 KiB holds no sequence");
    check(&run(&["--kv-memory", "12"]), "512MiB or 4GiB");
    check(&run(&["--host-memory", "12"]), "512MiB or 4GiB");
    check(&run(&["--host-memory", "1KiB"]), "--host-memory 1.0 KiB holds no page: a row of 8 tokens");
    check(&run(&["--host-memory", "9000TiB"]), "--host-memory 9000.0 TiB is more than the ");
    check(&run(&["--eviction", "lru"]), "age, score, fading-score");
    check(&run(&["--eviction", "age"]), "--eviction needs --host-memory");
    check(&run(&["--eviction", "age", "--host-memory", "0"]), "--eviction needs --host-memory");
    check(&run(&["--max-model-len", "1M"]), "not a number of tokens");
    check(&run(&["--max-model-len", "200000"]), "beyond the model's 131200 positions");
    check(&run(&["--max-model-len", "1"]), "--max-model-len is 16 or more");
    check(&run(&["--prefill-tokens", "1"]), "--prefill-tokens 1 is too low");
    check(&run(&["--decode-share", "1"]), "--decode-share 1 leaves no time");
    check(&run(&["--attention", "sketch", "--window-tokens", "3"]), "--window-tokens 3 is too small");
    check(&run(&["--temperature", "-1"]), "--temperature");
    check(&run(&["--temperature", "nan"]), "temperature");
    check(&run(&["--top-p", "0"]), "--top-p");
    check(&run(&["--presence-penalty", "nan"]), "presence_penalty is NaN");
    check(&run(&["--repetition-penalty", "inf"]), "repetition_penalty is inf");
    check(&run(&["--logit-bias", "999999:1"]), "999999");
    check(&run(&["--logit-bias", "5:inf", "--temperature", "1"]), "bias");
    check(&run(&["--logit-bias", "5"]), "ID:BIAS");
    check(&run(&["--choices", "9", "--max-lanes", "4"]), "9 choices");
    check(&run(&["--device", "gpu"]), "'gpu' is not a device; write cpu, cuda, or cuda:1");
    check(&run(&["--gpu-memory", "8GiB"]), "--gpu-memory needs --device cuda");
    check(&run(&["--weights", "noise"]), "own, random");
    check(&["run", "--file", "no/such/file"], "cannot read no/such/file");
    check(&["run"], "there is no prompt");
    check(&["run", "no/such/model", "--prompt", "x"], "no/such/model");
    check(&["run", "src", "--prompt", "x"], "config.json");
    check(&["eval", "needle", "--contexts", "1"], "--contexts 1");
    check(&["eval", "perplexity", "--file", "Cargo.toml", "--score", "99999"], "--score 99999");
    check(&["bench", "--batch", "1,128"], "--batch 128");
    check(&["bench", "--prompt-tokens", "8K", "--batch", "4", "--kv-memory", "40MiB"], "raise --kv-memory");
    check(&["bench", "--gen-tokens", "1"], "--gen-tokens 1");
}

#[test]
fn a_question_gets_its_answer_and_says_what_ran() {
    let prompt =
        "the code for the amber lamp is 4 0 7 1 . anton found the old boat . what is the code for the amber lamp ?";
    let output = spindle(&["run"], Some(prompt));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{err}");
    assert_eq!(out.trim(), "4 0 7 1 .");
    assert!(err.contains("attention: dense") && !err.contains("cached"), "{err}");
    assert!(!err.contains("warning"), "{err}");
}

#[test]
fn unknown_words_get_a_warning_that_says_what_the_model_is() {
    let output = spindle(&["run", "--prompt", "please summarise the treaty"], None);
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{err}");
    assert!(err.contains("'please', 'summarise', 'treaty'") && err.contains("toy"), "{err}");
}

#[test]
fn several_choices_and_log_probabilities() {
    let prompt = "the code for the amber lamp is 4 0 7 1 . what is the code for the amber lamp ?";
    let args = ["run", "--prompt", prompt, "--choices", "3", "--temperature", "0.7", "--logprobs", "2"];
    let output = spindle(&args, None);
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{err}");
    assert_eq!(out.lines().count(), 3, "{out}");
    assert!(out.contains("[2] "), "{out}");
}

#[test]
fn needle_questions_side_by_side() {
    let folder = std::env::temp_dir().join(format!("spindle-needle-{}", std::process::id()));
    let written = folder.with_extension("txt");
    let path = written.to_str().expect("a path in UTF-8");
    let args = ["eval", "needle", "--contexts", "1K", "--questions", "4", "--json", "--write", path];
    let output = spindle(&args, None);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON on standard output");
    let results = json["results"].as_array().expect("results");
    assert_eq!(results.len(), 3, "dense, shadowkv and sketch");
    assert_eq!(results[0]["accuracy"], 1.0, "{}", results[0]);
    let exact = |i: usize| results[i]["exact_tokens"].as_u64().expect("a number");
    assert!(exact(1) < exact(0) && exact(2) < exact(0), "sparse attention reads less: {json}");
    let mass = |i: usize| results[i]["attention_mass"].as_f64().expect("a number");
    assert!(0.999 < mass(0) && mass(2) < 0.999, "the mass is that of the exact tokens: {json}");
    let text = std::fs::read_to_string(&written).expect("the document was written");
    std::fs::remove_file(&written).expect("it can be removed");
    assert!(text.contains("the code for the") && text.contains("what is the code for the"), "{text}");
}

#[test]
fn perplexity_of_a_text_under_each_attention() {
    let written = std::env::temp_dir().join(format!("spindle-perplexity-{}.txt", std::process::id()));
    std::fs::write(&written, "anton found the old boat near the lake . ".repeat(60)).expect("it can be written");
    let path = written.to_str().expect("a path in UTF-8");
    let output =
        spindle(&["eval", "perplexity", "--file", path, "--score", "32", "--json", "--min-context", "0"], None);
    std::fs::remove_file(&written).expect("it can be removed");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON on standard output");
    for result in json["results"].as_array().expect("results") {
        let perplexity = result["perplexity"].as_f64().expect("a number");
        assert!((1.0..516.0).contains(&perplexity), "better than chance: {result}");
    }
}

#[test]
fn speed_and_gap_are_measured() {
    let args =
        ["bench", "--prompt-tokens", "256", "--gen-tokens", "8", "--batch", "1,2", "--repeat", "1", "--gap", "--json"];
    let output = spindle(&args, None);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON on standard output");
    assert_eq!(json["results"].as_array().expect("results").len(), 6, "{json}");
    assert!(
        json["results"].as_array().expect("results").iter().all(|r| r["decode_tokens_per_second"].as_f64() > Some(0.0))
    );
    assert_eq!(json["gaps"].as_array().expect("gaps").len(), 1);
}

/// A machine with a GPU has nothing to refuse.
#[test]
fn a_device_that_is_not_there_is_an_error() {
    for command in ["run", "serve", "bench", "info", "demo"] {
        let output = spindle(&[command, "--device", "cuda:999"], Some("the code"));
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{command}: {text}");
        assert!(text.contains("error: --device cuda:999: "), "{command}: {text}");
        let is_told = text.contains("cargo build --release --features cuda") && text.contains("built without CUDA");
        assert!(is_told || cfg!(feature = "cuda"), "{command}: {text}");
    }
}

#[test]
fn host_memory_is_in_the_plan_and_makes_sequences_longer() {
    let args = ["info", "--kv-memory", "8MiB", "--host-memory", "64MiB", "--eviction", "score"];
    let output = spindle(&args, None);
    let out = String::from_utf8_lossy(&output.stdout);
    let host = "host     64.0 MiB behind the pool holds 32768 tokens; eviction score";
    for wanted in [host, "host memory for KV           64.0 MiB", "cache tags and ages", "at most"] {
        assert!(out.contains(wanted), "no '{wanted}' in {out}");
    }
    let json = spindle(&[&args[..], &["--json"]].concat(), None);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON on standard output");
    assert_eq!((&json["host_rows"], &json["eviction"]), (&4096.into(), &"score".into()));
    assert_eq!(json["memory_bytes"]["host memory for KV"], 64 << 20);
    let tokens = json["max_model_len"].as_u64().expect("a number");
    assert!((32_768..33_024).contains(&tokens), "the pool alone holds 4,080: {tokens}");
}

/// Every command that builds an engine takes the flags.
#[test]
fn a_document_beyond_the_pool_is_answered_from_host_memory() {
    let filler = "anton found the old boat near the lake . ".repeat(300);
    let prompt = format!("the code for the amber lamp is 4 0 7 1 . {filler}what is the code for the amber lamp ?");
    let small = ["--kv-memory", "3MiB", "--attention", "sketch", "--max-tokens", "8"];
    let output = spindle(&[&["run", "--host-memory", "16MiB"], &small[..]].concat(), Some(&prompt));
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{err}");
    assert_eq!(out.trim(), "4 0 7 1 .");
    let folder = tempfile::tempdir().expect("a folder");
    let name = folder.path().display().to_string();
    let in_file = [&["run", "--host-memory", "16MiB", "--host-folder", &name], &small[..]].concat();
    let output = spindle(&in_file, Some(&prompt));
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "4 0 7 1 .", "the same out of a file");
    assert_eq!(std::fs::read_dir(&name).expect("a folder").count(), 0, "nothing stays behind");
    for (args, wanted) in [
        (
            &["--host-memory", "16MiB", "--host-folder", "/no/such"][..],
            "--host-folder /no/such: there is no such folder",
        ),
        (&["--selection-overlap", "0.9"], "--selection-overlap makes every answer meaningless"),
    ] {
        let output = spindle(&[&["info"], args].concat(), None);
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && err.contains(wanted), "{args:?}: {err}");
    }
    let output = spindle(&[&["run", "--max-model-len", "4K"], &small[..]].concat(), Some(&prompt));
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && err.contains("raise --kv-memory"), "{err}");
    for command in [&["eval", "needle"][..], &["eval", "perplexity", "--file", "x"], &["bench"], &["serve"]] {
        let output = spindle(&[command, &["--host-memory", "1KiB"]].concat(), None);
        let err = String::from_utf8_lossy(&output.stderr);
        assert!(err.contains("--host-memory 1.0 KiB holds no page"), "{command:?}: {err}");
    }
}

#[test]
fn info_shows_the_plan_without_loading() {
    let output = spindle(&["info"], None);
    let out = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success());
    let built = if cfg!(feature = "cuda") { "built with CUDA" } else { "built without CUDA" };
    for wanted in [built, "needle (qwen3, 4 layers", "KV pool", "prefill staging", "selection workspace", "at most"] {
        assert!(out.contains(wanted), "no '{wanted}' in {out}");
    }
    assert!(!out.contains("host memory for KV") && !out.contains("eviction"), "{out}");
    let json = spindle(&["info", "--json"], None);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).expect("JSON on standard output");
    assert_eq!((&json["host_memory_bytes"], &json["host_rows"]), (&0.into(), &0.into()));
    assert_eq!(json["built_with"]["cuda"], cfg!(feature = "cuda"));
    assert!(json["gpu"]["devices"].is_array() && json["gpu_memory_bytes"].is_null(), "{json}");
    assert_eq!(json["model"]["weights"], "safetensors");
}
