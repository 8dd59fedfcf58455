//! The server as its clients meet it: whole responses and event streams as text, and what is refused, by status and
//! words.

use serde_json::{Value, json};
use testing::http::{Reply, Server};

const BINARY: &str = env!("CARGO_BIN_EXE_spindle");
const QUESTION: &str = "the code for the amber lamp is 4 0 7 1 . what is the code for the amber lamp ?";

fn server(args: &[&str]) -> Server {
    Server::start(BINARY, &[&["--kv-memory", "64MiB", "--max-model-len", "4K"], args].concat())
}

fn messages() -> Value {
    json!([{"role": "user", "content": QUESTION}])
}

/// A response without what changes between runs: ids, times, and digits of log-probabilities.
fn settled(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['"', '-', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9']) {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if rest.starts_with('"') {
            let end = rest[1..].find('"').map_or(rest.len(), |end| end + 2);
            let string = &rest[..end];
            let is_id = ["\"cmpl-", "\"chatcmpl-"].iter().any(|prefix| string.starts_with(prefix));
            out.push_str(if is_id { "\"ID\"" } else { string });
            rest = &rest[end..];
            continue;
        }
        let end = rest.find(|c: char| !"+-.e0123456789".contains(c)).unwrap_or(rest.len());
        let number = &rest[..end];
        match number.parse::<f64>() {
            Ok(seconds) if 1e9 < seconds => out.push_str("TIME"),
            Ok(logprob) if number.contains('.') && logprob < 0.0 => out.push_str(&format!("{logprob:.2}")),
            _ => out.push_str(number),
        }
        rest = &rest[end..];
    }
    out + rest
}

fn pretty(reply: &Reply) -> String {
    assert_eq!(reply.status, 200, "{}", reply.body);
    settled(&format!("{:#}", reply.json()))
}

#[test]
fn whole_responses() {
    let server = server(&["--no-prefix-cache"]);
    let completion = json!({"prompt": QUESTION, "logprobs": 1, "max_tokens": 3});
    insta::assert_snapshot!("completion", pretty(&server.post("/v1/completions", &completion)));
    let chat = json!({"model": "needle", "messages": messages(), "logprobs": true, "top_logprobs": 1});
    insta::assert_snapshot!("chat", pretty(&server.post("/v1/chat/completions", &chat)));
    insta::assert_snapshot!("models", pretty(&server.get("/v1/models")));
    insta::assert_snapshot!("model", pretty(&server.get("/v1/models/needle")));
    let tokenized = server.post("/tokenize", &json!({"prompt": "the code for", "return_token_strs": true}));
    insta::assert_snapshot!("tokenize", pretty(&tokenized));
    let tokens = tokenized.json()["tokens"].clone();
    insta::assert_snapshot!("detokenize", pretty(&server.post("/detokenize", &json!({"tokens": tokens}))));
    let chat = json!({"messages": messages(), "add_generation_prompt": true, "colour": 1});
    let counted = server.post("/tokenize", &chat);
    assert_eq!((counted.status, counted.header("x-spindle-ignored-fields")), (200, Some("colour")));
    assert_eq!(server.get("/v1/models/%ff").json()["error"]["code"], "model_not_found");
    assert_eq!(server.get("/health").status, 200);
    assert_eq!(server.get("/version").json()["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn event_streams() {
    let server = server(&[]);
    let transcript = |path: &str, body: Value| {
        let stream = server.stream(path, &body);
        assert_eq!(stream.status, 200);
        settled(&stream.events().join("\n"))
    };
    let chat = json!({"messages": messages(), "stream": true, "stream_options": {"include_usage": true}});
    insta::assert_snapshot!("chat_stream", transcript("/v1/chat/completions", chat));
    let completion = json!({"prompt": QUESTION, "stream": true, "logprobs": 1, "echo": true, "max_tokens": 2});
    insta::assert_snapshot!("completion_stream", transcript("/v1/completions", completion));
}

#[test]
fn prompts_take_every_form() {
    let server = server(&[]);
    let texts = |prompt: Value, more: Value| -> Vec<String> {
        let mut body = json!({"prompt": prompt});
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let reply = server.post("/v1/completions", &body);
        assert_eq!(reply.status, 200, "{}", reply.body);
        let reply = reply.json();
        let choices = reply["choices"].as_array().expect("choices");
        choices.iter().map(|choice| choice["text"].as_str().expect("a text").to_string()).collect()
    };
    let ids = server.post("/tokenize", &json!({"prompt": QUESTION})).json()["tokens"].clone();
    let answer = texts(json!(QUESTION), json!({}));
    assert_eq!(answer, [" 4 0 7 1 ."]);
    assert_eq!(texts(json!([QUESTION]), json!({})), answer);
    assert_eq!(texts(ids.clone(), json!({})), answer);
    assert_eq!(texts(json!([ids, ids]), json!({})), [answer.clone(), answer.clone()].concat());
    assert_eq!(texts(json!([QUESTION, QUESTION]), json!({"n": 2})), vec![answer[0].clone(); 4]);
    assert_eq!(texts(json!(QUESTION), json!({"best_of": 3, "temperature": 0.3, "seed": 5})).len(), 1);
    assert_eq!(texts(json!(QUESTION), json!({"stop": ["7"]})), [" 4 0 "]);
    assert_eq!(texts(json!(QUESTION), json!({"max_tokens": 2})), [" 4 0"]);
    let seven =
        server.post("/tokenize", &json!({"prompt": "7", "add_special_tokens": false})).json()["tokens"][0].clone();
    assert_eq!(texts(json!(QUESTION), json!({"stop_token_ids": [seven]})), [" 4 0 7"]);
    assert_ne!(texts(json!(QUESTION), json!({"logit_bias": {seven.to_string(): -100}})), answer);
    let long = texts(json!(QUESTION), json!({"ignore_eos": true, "max_tokens": 40}));
    assert!(answer[0].len() < long[0].len(), "{long:?}");
    let long = texts(json!(QUESTION), json!({"min_tokens": 20, "max_tokens": 40}));
    assert!(answer[0].len() < long[0].len(), "{long:?}");
    let drawn = |seed: u64| texts(json!("the"), json!({"temperature": 1.5, "seed": seed, "max_tokens": 20, "n": 2}));
    assert_eq!(drawn(7), drawn(7));
    assert_ne!(drawn(7), drawn(8));
    assert_ne!(drawn(7)[0], drawn(7)[1]);
}

#[test]
fn attention_is_chosen_by_the_request_and_reported() {
    let server = server(&["--attention", "sketch", "--budget", "1%", "--min-context", "64"]);
    let ran = |attention: Value| {
        let prompt = format!("{} {QUESTION}", "the lamp is amber . ".repeat(100));
        let reply = server.post("/v1/completions", &json!({"prompt": prompt, "attention": attention}));
        assert_eq!(reply.status, 200, "{}", reply.body);
        reply.json()["usage"]["attention"].clone()
    };
    let default = ran(Value::Null);
    assert_eq!((&default["algorithm"], &default["budget"]), (&json!("sketch"), &json!(0.01)));
    assert!(default["exact_tokens"].as_u64() < default["context_tokens"].as_u64(), "{default}");
    let own = ran(json!({"algorithm": "shadowkv", "budget": "6%"}));
    assert_eq!((&own["algorithm"], &own["budget"]), (&json!("shadowkv"), &json!(0.06)));
    let dense = ran(json!({"algorithm": "dense"}));
    assert_eq!(dense["exact_tokens"], dense["context_tokens"]);
    let short = server.post("/v1/completions", &json!({"prompt": QUESTION})).json();
    let ran = short["usage"]["attention"]["ran"].as_str().expect("a text");
    assert!(ran.starts_with("dense: below min-context"), "{ran}");
}

#[test]
fn what_cannot_be_answered_is_refused_by_name() {
    let server = server(&[]);
    let check = |path: &str, body: Value, status: u16, param: &str, words: &str| {
        let reply = server.post(path, &body);
        let error = reply.json()["error"].clone();
        assert_eq!(reply.status, status, "{body}: {}", reply.body);
        assert_eq!(error["param"].as_str().unwrap_or_default(), param, "{body}: {error}");
        assert!(error["message"].as_str().expect("a message").contains(words), "{body}: no '{words}' in {error}");
        assert!(error["type"].is_string() && error.get("code").is_some(), "{error}");
    };
    let completion = |field: &str, value: Value, words: &str| {
        check("/v1/completions", json!({"prompt": "the", field: value}), 400, field, words);
    };
    completion("temperature", json!("hot"), "a number from 0 to 100; it is \"hot\"");
    completion("temperature", json!(-1), "it is -1");
    completion("top_p", json!(0), "above 0");
    completion("n", json!(0), "from 1 to 128");
    completion("max_tokens", json!(1.5), "whole number");
    completion("logprobs", json!(21), "from 0 to 20");
    completion("best_of", json!(0), "from 1 to 128");
    completion("stop", json!([7]), "a string or a list of strings; it is 7");
    completion("stop", json!(vec!["x"; 17]), "17 strings and may have 16");
    completion("stop", json!("x".repeat(1025)), "1025 bytes; at most 1024");
    completion("logit_bias", json!({"lamp": 1}), "'lamp', which is no token id");
    completion("logit_bias", json!({"5": "much"}), "logit_bias.5");
    completion("logit_bias", json!({"99999": 1}), "99999");
    completion("stop_token_ids", json!(["x"]), "list of token ids");
    completion("seed", json!(1.5), "whole number of 64 bits");
    completion("stream", json!("yes"), "true or false");
    completion("suffix", json!("end"), "suffix is not supported");
    completion("use_beam_search", json!(true), "not supported");
    completion("guided_json", json!({"type": "object"}), "use response_format");
    completion("truncate_prompt_tokens", json!(5), "no token of it is dropped");
    completion("stream_options", json!({"include_usage": true}), "only allowed with stream");
    let attention = |value: Value, param: &str, words: &str| {
        check("/v1/completions", json!({"prompt": "the", "attention": value}), 400, param, words);
    };
    attention(json!("sketch"), "attention", "an object");
    attention(json!({"algorithm": "skech"}), "attention.algorithm", "dense, shadowkv, shadowkv+estimate, sketch");
    attention(json!({"algorithm": "sketch", "budget": 8}), "attention.budget", "a share of the context");
    attention(json!({"budget": 0.1}), "attention.budget", "dense attention reads every token");
    attention(json!({"algorithm": "sketch", "topk": 3}), "attention.topk", "not known");
    check("/v1/completions", json!({}), 400, "prompt", "prompt is missing");
    check("/v1/completions", json!({"prompt": []}), 400, "prompt", "empty");
    check("/v1/completions", json!({"prompt": [[]]}), 400, "prompt", "empty");
    check("/v1/completions", json!({"prompt": {"a": 1}}), 400, "prompt", "it is an object");
    check("/v1/completions", json!({"prompt": [5, "x"]}), 400, "prompt", "token ids; it is \"x\"");
    check("/v1/completions", json!({"prompt": [99999]}), 400, "prompt", "99999");
    check("/v1/completions", json!({"prompt": vec!["the"; 129]}), 400, "prompt", "129 prompts and may have 128");
    let much = json!({"prompt": "the", "n": 128, "logprobs": 20, "max_tokens": 2000});
    check("/v1/completions", much, 400, "logprobs", "1 x 128 x 2000 x 21");
    let many = json!({"prompt": vec!["the"; 100], "logprobs": 20, "max_tokens": 1500});
    check("/v1/completions", many, 400, "logprobs", "100 x 1 x 1500 x 21");
    check("/v1/completions", json!({"prompt": "the", "model": "gpt-9"}), 404, "model", "\"gpt-9\" is not served here");
    let long = "the lamp ".repeat(5000);
    check("/v1/completions", json!({"prompt": long}), 400, "prompt", "10001 tokens and a sequence may have 4096");
    check("/v1/completions", json!({"prompt": "the", "n": 65}), 400, "n", "at most 64");
    check("/v1/chat/completions", json!({}), 400, "messages", "missing");
    check("/v1/chat/completions", json!({"messages": messages(), "max_tokens": 0}), 400, "max_tokens", "1 or more");
    check("/v1/chat/completions", json!({"messages": messages(), "top_logprobs": 2}), 400, "top_logprobs", "logprobs");
    check("/v1/chat/completions", json!({"messages": messages(), "functions": [{}]}), 400, "functions", "use tools");
    check("/v1/chat/completions", json!({"messages": messages(), "modalities": ["audio"]}), 400, "modalities", "text");
    check("/detokenize", json!({"tokens": [1, 99999]}), 400, "tokens", "99999");
}

#[test]
fn wrong_requests_get_their_status() {
    let server = server(&["--api-key", "secret", "--served-model-name", "first", "--served-model-name", "second"]);
    let json_type = ("content-type", "application/json");
    let key = ("authorization", "Bearer secret");
    let check = |method: &str, path: &str, headers: &[(&str, &str)], body: &str, status: u16, words: &str| {
        let reply = server.request(method, path, headers, body);
        assert_eq!(reply.status, status, "{method} {path}: {}", reply.body);
        assert!(reply.body.contains(words), "{method} {path}: no '{words}' in {}", reply.body);
        reply
    };
    let path = "/v1/completions";
    let missing = check("POST", path, &[json_type], "{}", 401, "no API key");
    assert_eq!(missing.header("www-authenticate"), Some("Bearer"));
    check("POST", path, &[json_type, ("authorization", "Bearer wrong")], "{}", 401, "not known");
    check("GET", "/live", &[], "", 401, "no API key");
    check("GET", "/debug/residency", &[], "", 401, "no API key");
    check("GET", "/debug/residency", &[key], "", 200, "\"sequences\":[]");
    check("GET", "/health", &[], "", 200, "");
    check("GET", "/metrics", &[], "", 200, "model_name=\"first\"");
    check("GET", "/v1/models", &[key], "", 200, "\"second\"");
    check("POST", path, &[json_type, key], "{\"prompt\": ", 400, "not valid JSON");
    check("POST", path, &[json_type, key], "[1]", 400, "must be a JSON object; it is a list");
    check("POST", path, &[key, ("content-type", "text/plain")], "{}", 415, "application/json");
    check("GET", path, &[key], "", 405, "GET is not allowed");
    check("GET", "/v2/completions", &[key], "", 404, "there is nothing at /v2/completions");
    let huge = format!("{{\"prompt\": \"{}\"}}", "x".repeat(17 << 20));
    check("POST", path, &[json_type, key], &huge, 413, "larger than 16 MiB");
    let named = r#"{"prompt": "the", "model": "second", "max_tokens": 1, "colour": 1, "tools": [], "user": "me"}"#;
    let reply = check("POST", path, &[json_type, key], named, 200, "\"second\"");
    assert_eq!(reply.header("x-spindle-ignored-fields"), Some("colour"));
    let strange = r#"{"prompt": "the zebra", "max_tokens": 1}"#;
    let reply = check("POST", path, &[json_type, key], strange, 200, "");
    assert_eq!(reply.header("x-spindle-warning"), Some("1 words of the prompt are not in the model's vocabulary"));
}

#[test]
fn turn_two_of_a_chat_does_not_read_the_document_again() {
    let server = server(&[]);
    let document = format!("{} {QUESTION}", "the lamp is amber . ".repeat(300));
    let ask = |messages: &Value| {
        let reply = server.post("/v1/chat/completions", &json!({"messages": messages}));
        assert_eq!(reply.status, 200, "{}", reply.body);
        let reply = reply.json();
        let usage = &reply["usage"];
        let count = |value: &Value| value.as_u64().expect("a count");
        let cached = count(&usage["prompt_tokens_details"]["cached_tokens"]);
        (reply["choices"][0]["message"].clone(), count(&usage["prompt_tokens"]), cached)
    };
    let mut messages = json!([{"role": "user", "content": document}]);
    let (answer, first, cached) = ask(&messages);
    assert_eq!((answer["content"].as_str().map(str::trim), cached), (Some("4 0 7 1 ."), 0));
    let turns = messages.as_array_mut().expect("a list");
    turns.extend([answer, json!({"role": "user", "content": "what is the code for the amber lamp ?"})]);
    let (answer, second, cached) = ask(&messages);
    assert_eq!(answer["content"].as_str().map(str::trim), Some("4 0 7 1 ."));
    assert!(first < second && first - 8 <= cached && cached <= first, "{cached} of {first}, then {second}");
}

#[test]
fn an_echoed_prompt_has_log_probabilities() {
    let server = server(&[]);
    let body = json!({"prompt": QUESTION, "echo": true, "logprobs": 0, "max_tokens": 0, "prompt_logprobs": 2});
    let reply = server.post("/v1/completions", &body).json();
    let choice = &reply["choices"][0];
    assert_eq!(choice["text"], QUESTION);
    let tokens = choice["logprobs"]["tokens"].as_array().expect("a list").len();
    assert_eq!(reply["usage"]["prompt_tokens"], tokens);
    let logprobs = choice["logprobs"]["token_logprobs"].as_array().expect("a list");
    assert!(logprobs[0].is_null() && logprobs[1..].iter().all(|x| x.as_f64().is_some_and(|x| x <= 0.0)), "{choice}");
    let ranked = choice["prompt_logprobs"].as_array().expect("a list");
    assert!(ranked[0].is_null() && ranked.len() == tokens, "{choice}");
    for (own, ranked) in logprobs.iter().zip(ranked).skip(1) {
        let entries = ranked.as_object().expect("an object");
        assert!((2..=3).contains(&entries.len()), "{ranked}");
        assert!(entries.values().any(|entry| entry["logprob"] == *own), "{own} is not in {ranked}");
        assert!(entries.values().any(|entry| entry["rank"] == 1), "{ranked}");
    }
}
