//! What is sent: ids, text of the right length, shared prefixes.

use crate::fake_server::{Act, FakeServer, Request, json_answer, tokens};
use crate::{block_on, client, measure, settings};
use load::{Endpoint, LoadError, PromptKind, Settings, SharedPrefix};
use serde_json::{Value, json};
use std::time::Duration;

fn quick(request: &Request) -> Vec<Act> {
    tokens(request, Duration::ZERO, Duration::ZERO)
}

fn words(text: &Value) -> usize {
    text.as_str().map_or(0, |text| text.split_whitespace().count())
}

/// Requests of text of 16 tokens, and what they say of their length.
fn text(server: &FakeServer, endpoint: Endpoint) -> (Vec<Value>, Vec<String>) {
    let report = measure(server, Settings { prompt: PromptKind::Text, vocab: None, endpoint, ..settings() });
    assert_eq!(report.runs[0].summary.succeeded, 4, "{:?}", report.runs[0].summary);
    (server.bodies(), report.notes())
}

#[test]
fn ids_are_below_the_vocabulary_and_groups_share_their_prefix() {
    let server = FakeServer::start(quick);
    let shared = SharedPrefix { tokens: 10, groups: 1 };
    measure(&server, Settings { shared, ..settings() });
    let bodies = server.bodies();
    let ids = |body: &Value| -> Vec<u64> {
        body["prompt"].as_array().expect("ids").iter().filter_map(Value::as_u64).collect()
    };
    assert!(bodies.iter().all(|body| ids(body).len() == 16 && ids(body).iter().all(|id| *id < 100)));
    assert!(bodies.iter().all(|body| ids(body)[..10] == ids(&bodies[0])[..10]));
    assert_ne!(ids(&bodies[0])[10..], ids(&bodies[1])[10..]);
    assert_eq!((&bodies[0]["model"], &bodies[0]["ignore_eos"]), (&json!("fake"), &json!(true)));
}

#[test]
fn ids_need_a_vocabulary_and_an_endpoint_that_takes_them() {
    let server = FakeServer::start(quick);
    let client = client(&server.url());
    let error = |settings| {
        block_on(load::measure(&client, settings, &mut |_| (), std::future::pending())).expect_err("a refusal")
    };
    assert_eq!(error(Settings { vocab: None, ..settings() }), LoadError::VocabUnknown);
    assert_eq!(error(Settings { endpoint: Endpoint::Chat, ..settings() }), LoadError::ChatOfIds);
}

#[test]
fn text_is_as_long_as_the_tokenizer_says() {
    let server = FakeServer::start(|request| match request.line.as_str() {
        "POST /tokenize" => json_answer(200, &json!({"count": 2 * words(&request.body["prompt"])})),
        _ => quick(request),
    });
    let (bodies, notes) = text(&server, Endpoint::Completions);
    assert!(bodies.iter().all(|body| words(&body["prompt"]) == 8), "{bodies:?}");
    assert_eq!(notes, ["prompts are text of 2.00 tokens a word, by the server's /tokenize"]);
}

#[test]
fn without_a_tokenizer_the_usage_of_an_answer_says_it() {
    let server = FakeServer::start(|request| match (request.line.as_str(), &request.body["stream"]) {
        ("POST /tokenize", _) => json_answer(404, &json!({"detail": "Not Found"})),
        (_, Value::Bool(false)) => {
            let tokens = 4 * words(&request.body["messages"][0]["content"]);
            json_answer(200, &json!({"usage": {"prompt_tokens": tokens, "completion_tokens": 1}}))
        }
        _ => quick(request),
    });
    let (bodies, notes) = text(&server, Endpoint::Chat);
    assert_eq!(words(&bodies[0]["messages"][0]["content"]), 256, "the sample");
    assert!(bodies[1..].iter().all(|body| words(&body["messages"][0]["content"]) == 4), "{:?}", bodies[1]);
    assert_eq!(notes, ["prompts are text of 4.00 tokens a word, by the usage of one answer"]);
}

#[test]
fn without_either_it_is_a_guess_and_called_one() {
    let server = FakeServer::start(|request| match &request.body["stream"] {
        Value::Bool(true) => quick(request),
        _ => json_answer(200, &json!({"choices": [{"text": "x"}]})),
    });
    let (_, notes) = text(&server, Endpoint::Completions);
    assert!(notes[0].contains("a guess"), "{notes:?}");
}
