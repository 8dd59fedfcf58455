//! `spindle bench serve` as its user meets it: against a server in this process, one that refuses, and none.

#[path = "../../load/tests/suite/fake_server.rs"]
mod fake_server;

use fake_server::{FakeServer, Request, json_answer, tokens};
use serde_json::{Value, json};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// The binary's exit, standard output and standard error.
fn serve(url: &str, more: &[&str]) -> (bool, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_spindle"));
    command.args(["bench", "serve", "--url", url]).args(more).stdin(Stdio::null());
    let Output { status, stdout, stderr } = command.output().expect("the binary runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    (status.success(), text(stdout), text(stderr))
}

fn quick(request: &Request) -> Vec<fake_server::Act> {
    match request.line.as_str() {
        "POST /tokenize" => json_answer(200, &json!({"count": 256})),
        _ => tokens(request, Duration::from_millis(10), Duration::from_millis(1)),
    }
}

#[test]
fn tables_json_and_chart_of_a_server() {
    let server = FakeServer::start(quick);
    let file = |ending: &str| std::env::temp_dir().join(format!("spindle-load-{}.{ending}", std::process::id()));
    let (json_file, svg_file) = (file("json"), file("svg"));
    let paths = [&json_file, &svg_file].map(|path| path.to_str().expect("UTF-8"));
    let args =
        ["--concurrency", "1,4", "--requests", "6", "--prompt-tokens", "8..64", "--gen-tokens", "5", "--warmup", "1"];
    let more = ["--slo", "ttft=1m", "--api-key", "sk-1", "--save-requests", "--json", paths[0], "--svg", paths[1]];
    let (success, out, err) = serve(&server.url(), &[&args[..], &more[..]].concat());
    assert!(success, "{err}");
    for wanted in ["fake at http://127.0.0.1", "| 1 at once |", "| 4 at once |", "TTFT p95", "good req/s", "/tokenize"]
    {
        assert!(out.contains(wanted), "no {wanted} in {out}");
    }
    assert!(server.last_headers().iter().any(|header| header == "authorization: bearer sk-1"));
    assert_eq!(server.bodies().len(), 13);
    let written = std::fs::read_to_string(&json_file).expect("JSON was written");
    let svg = std::fs::read_to_string(&svg_file).expect("a chart was drawn");
    for path in [json_file, svg_file] {
        std::fs::remove_file(path).expect("it can be removed");
    }
    let written: Value = serde_json::from_str(&written).expect("JSON");
    assert_eq!(written["runs"][1]["requests"].as_array().map(Vec::len), Some(6));
    assert!(10.0 <= written["runs"][0]["ttft_ms"]["p50"].as_f64().expect("a number"), "{written}");
    assert_eq!(written["settings"]["loads"], json!([{"concurrency": 1}, {"concurrency": 4}]));
    assert!(svg.starts_with("<svg") && svg.contains("requests at once"), "{svg}");
}

#[test]
fn json_alone_goes_to_standard_output() {
    let server = FakeServer::start(quick);
    let rate = ["--rate", "200", "--requests", "5", "--prompt", "ids", "--vocab", "50", "--json"];
    let lengths = ["--workload", "longbench-v2", "--scale", "0.001", "--extra", r#"{"attention": {"budget": 0.5}}"#];
    let (success, out, err) = serve(&server.url(), &[&rate[..], &lengths[..]].concat());
    assert!(success, "{err}");
    let written: Value = serde_json::from_str(&out).expect("JSON and nothing else");
    assert_eq!(written["runs"][0]["succeeded"], 5);
    assert_eq!(server.bodies()[0]["attention"]["budget"], 0.5);
    let lengths = server.bodies().iter().map(|body| body["prompt"].as_array().map_or(0, Vec::len)).collect::<Vec<_>>();
    assert!(lengths.iter().all(|length| (33..=123).contains(length)), "{lengths:?}");
}

#[test]
fn failures_are_shown_and_fail() {
    let check = |status: u16, message: &str, more: &[&str], out_has: &str, err_has: &str| {
        let body = json!({"error": {"message": message}});
        let server = FakeServer::start(move |_| json_answer(status, &body));
        let (success, out, err) = serve(&server.url(), &[&["--requests", "3"], more].concat());
        assert!(!success, "{out}");
        assert!(out.contains(out_has) && err.contains(err_has), "{out}\n{err}");
        assert!(!err.contains("panicked"), "{err}");
    };
    let ids = ["--prompt", "ids", "--vocab", "9"];
    check(400, "no ids", &ids, "1 at once: 3 failed: status 400: no ids", "--prompt text needs none");
    check(401, "who are you", &[], "", "give --api-key");
    check(500, "out of memory", &["--warmup", "1", "--prompt", "ids", "--vocab", "9"], "", "out of memory");
    check(500, "x", &["--prompt", "ids"], "", "give --vocab");
}

#[test]
fn a_server_that_is_not_there_and_bad_flags_are_said_by_name() {
    let check = |url: &str, more: &[&str], wanted: &str| {
        let (success, _, err) = serve(url, more);
        assert!(!success && err.contains(wanted), "{url} {more:?}: {err}");
        assert!(!err.contains("panicked"), "{err}");
    };
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("an address").port();
    let url = format!("http://127.0.0.1:{port}");
    check(&url, &[], &format!("{url} cannot be measured: no connection"));
    check(&url, &[], "is it running?");
    check("https://example.invalid", &[], "https is not spoken here");
    check("http://no-such-host.invalid", &[], "no-such-host.invalid");
    check(&url, &["--rate", "1", "--concurrency", "1"], "--concurrency");
    check(&url, &["--rate", "0"], "not a number above 0");
    check(&url, &["--concurrency", "0"], "--concurrency 0");
    check(&url, &["--concurrency", "9", "--max-concurrency", "8"], "--concurrency 9");
    check(&url, &["--prompt-tokens", "9..3"], "9..3");
    check(&url, &["--workload", "longgenbench", "--gen-tokens", "3"], "--gen-tokens");
    check(&url, &["--slo", "e2e=3s"], "ttft=2s or tpot=50ms");
    check(&url, &["--extra", "[1]"], "not a JSON object");
    check(&url, &["--header", "x"], "NAME: VALUE");
    check(&url, &["--duration", "3"], "500ms, 2s, 5m or 1h");
    check(&url, &["--text-file", "no/such/file"], "no/such/file");
    check(&url, &["--json", "no/such/folder/x.json"], "cannot write");
    check(&url, &["--save-requests"], "--json");
    check(&url, &["--prompt", "ids", "--endpoint", "chat"], "use --prompt text");
}
