//! `--weights random`: a `config.json` alone runs, and everything says that its answers mean nothing.

use serde_json::{Value, json};
use std::path::PathBuf;
use std::process::{Command, Output};
use testing::http::Server;

const BINARY: &str = env!("CARGO_BIN_EXE_spindle");

/// The configuration of a tiny model, whose output matrix is the embedding (llama) or is not (mistral).
struct Shape(PathBuf);

impl Shape {
    /// `test` keeps tests that run at once apart.
    fn new(name: &str, test: &str) -> Shape {
        let tiny = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../testing/golden/tiny").join(name);
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("shape-{test}-{name}"));
        std::fs::create_dir_all(&folder).expect("a folder");
        std::fs::copy(tiny.join("config.json"), folder.join("config.json")).expect("it can be copied");
        Shape(folder)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("a path in UTF-8")
    }
}

fn spindle(args: &[&str]) -> Output {
    Command::new(BINARY).args(args).output().expect("the binary starts")
}

#[test]
fn run_answers_and_says_that_it_means_nothing() {
    for name in ["llama", "mistral"] {
        let shape = Shape::new(name, "run");
        let args = ["run", shape.path(), "--weights", "random", "--prompt", "4 + 4", "-n", "8"];
        let output = spindle(&args);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{err}");
        assert!(err.contains("weights  random: answers mean nothing"), "{err}");
        assert!(err.contains("the bytes of a text are its tokens") && err.contains("5 prompt tokens"), "{err}");
        assert_eq!(spindle(&args).stdout, output.stdout, "the noise is seeded: {out}");
        let own = spindle(&["run", shape.path(), "--prompt", "4 + 4"]);
        assert!(String::from_utf8_lossy(&own.stderr).contains("it has no file tokenizer.json"));
    }
}

#[test]
fn bench_measures_the_shape() {
    let shape = Shape::new("mistral", "bench");
    let config = shape.0.join("config.json");
    let sizes =
        ["--attention", "dense,shadowkv", "--prompt-tokens", "64", "--gen-tokens", "4", "--repeat", "1", "--json"];
    let args = [&["bench", config.to_str().expect("UTF-8"), "--weights", "random"][..], &sizes[..]].concat();
    let output = spindle(&args);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let json: Value = serde_json::from_slice(&output.stdout).expect("JSON on standard output");
    assert_eq!((json["weights"].as_str(), json["model"].as_str()), (Some("random"), Some("shape-bench-mistral")));
    assert_eq!(json["results"].as_array().map(Vec::len), Some(2), "{json}");
}

#[test]
fn serve_takes_token_ids() {
    let shape = Shape::new("llama", "serve");
    let server = Server::start(BINARY, &[shape.path(), "--weights", "random", "--kv-memory", "16MiB"]);
    assert!(server.plan.contains("weights  random: answers mean nothing"), "{}", server.plan);
    let body = json!({"prompt": [1, 2, 287], "max_tokens": 5, "ignore_eos": true});
    let reply = server.post("/v1/completions", &body);
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(reply.json()["usage"]["prompt_tokens"], 3);
    assert_eq!(reply.json()["usage"]["completion_tokens"], 5);
    let models = server.get("/v1/models").json();
    assert_eq!(models["data"][0]["meta"]["weights"], "random: answers mean nothing");
    let chat = server.post("/v1/chat/completions", &json!({"messages": [{"role": "user", "content": "hello"}]}));
    assert_eq!(chat.status, 400, "{}", chat.body);
}
