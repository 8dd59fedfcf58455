//! The server where the cache does not fit: sequences whose pages are in host memory, how they look from outside, what
//! is refused, and that nobody's answer changes.

use serde_json::{Value, json};
use testing::http::Server;

const BINARY: &str = env!("CARGO_BIN_EXE_spindle");
const PATH: &str = "/v1/completions";

/// A page of the bundled model, and a row of its four layers and two KV heads.
const PAGE_BYTES: u64 = 2048;
const ROW_BYTES: u64 = 8 * PAGE_BYTES;

/// Requests at once, tokens of their prompts and of their answers: one alone takes 306 rows, 4.8 MiB, fully resident.
const REQUESTS: usize = 4;
const PROMPT_TOKENS: usize = 2000;
const GENERATED: usize = 150;

fn server(more: &[&str]) -> Server {
    let small = ["--attention", "sketch", "--budget", "5%", "--min-context", "256", "--max-model-len", "4K"];
    Server::start(BINARY, &[&small, more].concat())
}

fn body(seed: usize, more: Value) -> Value {
    let known = ["the", "amber", "lamp", "is", "code", "for", "what", "4", "0", "7", "1", "."];
    let word = |i: usize| known[(i * (seed + 1) + i / 7 + seed) % known.len()];
    let prompt = (0..PROMPT_TOKENS).map(word).collect::<Vec<_>>().join(" ");
    let mut body = json!({"prompt": prompt, "max_tokens": GENERATED, "ignore_eos": true, "temperature": 0});
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

/// Every request's answer, all asked for at once; `watch` looks at the server meanwhile.
fn answers(server: &Server, watch: impl FnOnce()) -> Vec<String> {
    std::thread::scope(|scope| {
        let ask = |seed: usize| {
            scope.spawn(move || {
                let reply = server.post(PATH, &body(seed, json!({})));
                assert_eq!(reply.status, 200, "{}", reply.body);
                reply.json()["choices"][0]["text"].as_str().expect("a text").to_string()
            })
        };
        let asked: Vec<_> = (0..REQUESTS).map(ask).collect();
        watch();
        asked.into_iter().map(|asked| asked.join().expect("it is answered")).collect()
    })
}

fn residency(server: &Server) -> Value {
    let reply = server.get("/debug/residency");
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.json()
}

fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no count"))
}

/// The first sequence that decodes and has fetched something, once there is one.
fn running(server: &Server, residence: &str) -> Value {
    let found = std::cell::RefCell::new(Value::Null);
    server.wait("a sequence decodes", |server| {
        let all = residency(server)["sequences"].clone();
        let decodes =
            |one: &&Value| one["phase"] == "running" && count(&one["prompt_tokens"]) + 8 < count(&one["tokens"]);
        let is_wanted =
            |one: &&Value| one["residence"] == residence && (residence == "full" || 0 < count(&one["page_misses"]));
        let one = all.as_array().expect("a list").iter().filter(decodes).find(is_wanted).cloned();
        *found.borrow_mut() = one.unwrap_or_default();
        found.borrow().is_object()
    });
    found.into_inner()
}

#[test]
fn answers_are_a_roomy_servers_and_every_row_is_accounted_for() {
    let roomy = server(&["--kv-memory", "64MiB"]);
    let want = answers(&roomy, || {
        let one = running(&roomy, "full");
        assert_eq!((count(&one["host_rows"]), count(&one["pool_rows"]["slots"])), (0, 0), "{one}");
        assert!(PROMPT_TOKENS as u64 / 8 <= count(&one["pool_rows"]["kv"]), "{one}");
    });
    assert_eq!((roomy.metric("spindle_page_misses_total"), roomy.metric("spindle_host_rows{")), (0.0, 0.0));
    let tight = server(&["--kv-memory", "3MiB", "--host-memory", "16MiB", "--eviction", "age"]);
    assert!(tight.plan.contains("host     16.0 MiB behind the pool holds 8192 tokens; eviction age"), "{}", tight.plan);
    assert!(tight.plan.contains("host memory for KV 16.0 MiB, cache tags and ages"), "{}", tight.plan);
    let got = answers(&tight, || {
        let one = running(&tight, "sparse");
        let pages = PROMPT_TOKENS as u64 / 8;
        let (rows, selected) = (&one["pool_rows"], count(&one["selected_pages"]));
        assert!((2 * selected..=pages).contains(&count(&rows["slots"])), "{one}");
        assert!(count(&rows["kv"]) < 32 && 0 < count(&rows["summary"]), "{one}");
        assert!(pages <= count(&rows["kv"]) + count(&one["host_rows"]), "every page has a home: {one}");
        assert!(0 < count(&one["page_hits"]), "{one}");
    });
    assert_eq!(got, want);
    check_totals(&tight);
}

/// What is left to see when all requests have ended.
fn check_totals(server: &Server) {
    server.wait("every row of host memory is free", |server| {
        server.metric("spindle_host_rows_free") == 1024.0 && server.metric("spindle_host_rows_reserved") == 0.0
    });
    let (hits, misses) = (server.metric("spindle_page_hits_total"), server.metric("spindle_page_misses_total"));
    assert!(0.0 < misses && 0.0 < hits, "{hits} hits, {misses} misses");
    assert_eq!(server.metric("spindle_fetched_bytes_total"), misses * PAGE_BYTES as f64);
    let offloaded = server.metric("spindle_offloaded_rows_total");
    assert_eq!(server.metric("spindle_offloaded_bytes_total"), offloaded * ROW_BYTES as f64);
    for gone in ["spindle_rows_slots", "spindle_host_rows_pages", "spindle_sequences_sparse"] {
        assert_eq!(server.metric(gone), 0.0, "{gone}");
    }
    for of in ["least", "median", "most"] {
        let text = server.get("/metrics").body;
        let line = text.lines().find(|line| {
            line.starts_with("spindle_slots_per_selected_page{") && line.contains(&format!("of=\"{of}\""))
        });
        assert_eq!(line.and_then(|line| line.rsplit(' ').next()), Some("0"), "{of}");
    }
    let all = residency(server);
    assert_eq!((&all["sequences"], count(&all["host"]["rows"])), (&json!([]), 1024), "{all}");
    assert_eq!((count(&all["row_bytes"]), count(&all["page_bytes"])), (ROW_BYTES, PAGE_BYTES));
    let live = server.get("/live").json();
    assert_eq!((count(&live["host_rows"]["all"]), count(&live["rows"]["slots"])), (1024, 0), "{live}");
    assert_eq!(count(&live["page_misses_total"]) as f64, misses);
}

#[test]
fn what_fits_in_neither_is_refused_with_both_sizes() {
    let server = server(&["--kv-memory", "3MiB", "--host-memory", "1MiB"]);
    let refused = |more: Value, code: &str, words: &[&str]| {
        let reply = server.post(PATH, &body(1, more));
        let error = reply.json()["error"].clone();
        assert_eq!((reply.status, &error["code"]), (400, &json!(code)), "{}", reply.body);
        for words in words {
            assert!(error["message"].as_str().expect("a message").contains(words), "no '{words}' in {error}");
        }
    };
    refused(json!({}), "host_memory_exceeded", &["rows of host memory (5 MiB)", "64 (1 MiB)", "raise --host-memory"]);
    // Dense attention reads every page at every step: they have to be in the pool.
    let dense = json!({"attention": {"algorithm": "dense"}});
    refused(dense, "kv_memory_exceeded", &["rows of KV memory (5 MiB)", "192 (3 MiB)", "raise --kv-memory"]);
}
