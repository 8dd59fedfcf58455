//! Answers held to a form: JSON of a schema and calls of tools, from a model of random weights, which would say
//! anything.

use serde_json::{Value, json};
use testing::http::Server;

const BINARY: &str = env!("CARGO_BIN_EXE_spindle");
const PATH: &str = "/v1/chat/completions";

fn server() -> Server {
    let noise = concat!(env!("CARGO_MANIFEST_DIR"), "/../testing/golden/noise");
    Server::start(BINARY, &[noise, "--kv-memory", "32MiB", "--max-model-len", "8K"])
}

fn body(seed: u64, more: Value) -> Value {
    let messages = json!([{"role": "user", "content": "Say something."}]);
    let mut body = json!({"messages": messages, "temperature": 1, "seed": seed, "max_tokens": 2000});
    body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    body
}

fn weather() -> Value {
    let parameters = json!({
        "type": "object", "additionalProperties": false, "required": ["city", "days"],
        "properties": {"city": {"enum": ["Oslo", "Lima"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    });
    json!([{"type": "function", "function": {"name": "weather", "description": "Tells it.", "parameters": parameters}}])
}

fn check_arguments(text: &str) {
    let arguments: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert!(["Oslo", "Lima"].contains(&arguments["city"].as_str().expect("a city")), "{text}");
    assert!((1..=9).contains(&arguments["days"].as_u64().expect("days")), "{text}");
}

#[test]
fn noise_says_json_of_a_schema() {
    let server = server();
    let schema = json!({
        "type": "object", "additionalProperties": false, "required": ["name", "tags"],
        "properties": {
            "name": {"type": "string", "maxLength": 12},
            "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
        },
    });
    let format = json!({"type": "json_schema", "json_schema": {"name": "thing", "schema": schema, "strict": true}});
    for seed in 0..4 {
        let reply = server.post(PATH, &body(seed, json!({"response_format": format, "n": 2}))).json();
        for choice in reply["choices"].as_array().expect("choices") {
            let text = choice["message"]["content"].as_str().expect("a text");
            assert_eq!(choice["finish_reason"], "stop", "{reply}");
            let thing: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
            assert!(thing["name"].as_str().expect("a name").chars().count() <= 12, "{text}");
            assert!(thing["tags"].as_array().expect("tags").len() <= 3, "{text}");
        }
    }
}

#[test]
fn noise_calls_a_tool_that_it_must_call() {
    let server = server();
    let choices = [json!("required"), json!({"type": "function", "function": {"name": "weather"}})];
    for (seed, choice) in (0..).zip(choices) {
        let form = json!({"tools": weather(), "tool_choice": choice, "parallel_tool_calls": false});
        let reply = server.post(PATH, &body(seed, form.clone()));
        assert_eq!(reply.status, 200, "{}", reply.body);
        let choice = reply.json()["choices"][0].clone();
        assert_eq!(choice["finish_reason"], "tool_calls", "{choice}");
        assert!(choice["message"]["content"].is_null(), "{choice}");
        let calls = choice["message"]["tool_calls"].as_array().expect("calls");
        assert_eq!((calls.len(), &calls[0]["function"]["name"]), (1, &json!("weather")));
        check_arguments(calls[0]["function"]["arguments"].as_str().expect("a text"));
        let mut streamed = body(seed, form);
        streamed["stream"] = json!(true);
        check_stream(&server, &streamed);
    }
}

/// The first part of a call has its id and name, the others go on with its arguments.
fn check_stream(server: &Server, body: &Value) {
    let events = server.stream(PATH, body).events();
    let (mut arguments, mut parts, mut reason) = (String::new(), 0, Value::Null);
    for event in &events[..events.len() - 1] {
        let choice = serde_json::from_str::<Value>(event).expect("an event")["choices"][0].clone();
        let call = &choice["delta"]["tool_calls"][0];
        if let Some(text) = call["function"]["arguments"].as_str() {
            let named = call["function"]["name"] == "weather" && call["id"].is_string() && call["type"] == "function";
            assert_eq!(named, parts == 0, "{event}");
            arguments += text;
            parts += 1;
        }
        reason = choice["finish_reason"].clone();
    }
    assert_eq!(reason, "tool_calls", "{events:?}");
    assert!(2 < parts, "{events:?}");
    check_arguments(&arguments);
}

#[test]
fn forms_that_cannot_be_kept_are_refused_by_name() {
    let server = server();
    let check = |more: Value, param: &str, words: &str| {
        let reply = server.post(PATH, &body(1, more.clone()));
        let error = &reply.json()["error"];
        assert_eq!(reply.status, 400, "{more}: {}", reply.body);
        assert_eq!(error["param"], param, "{more}: {error}");
        assert!(error["message"].as_str().expect("a message").contains(words), "{more}: no '{words}' in {error}");
    };
    check(json!({"response_format": {"type": "xml"}}), "response_format.type", "json_schema");
    check(json!({"response_format": {"type": "json_schema"}}), "response_format.json_schema", "name and schema");
    let broken = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "wrong"}}});
    check(json!({"response_format": broken}), "response_format.json_schema.schema", "wrong");
    check(
        json!({"response_format": {"type": "json_object"}, "ignore_eos": true}),
        "ignore_eos",
        "where an answer ends",
    );
    check(json!({"tools": "weather"}), "tools", "must be a list");
    check(json!({"tools": [{"type": "code"}]}), "tools[0].type", "must be function");
    check(json!({"tools": weather(), "tool_choice": "always"}), "tool_choice", "tool_choice");
    check(json!({"tools": weather(), "parallel_tool_calls": false}), "parallel_tool_calls", "required");
    // What changes nothing is accepted.
    let neutral = json!({"tools": [], "response_format": {"type": "text"}, "max_tokens": 4});
    assert_eq!(server.post(PATH, &body(1, neutral)).status, 200);
    let needle = Server::start(BINARY, &["--kv-memory", "32MiB", "--max-model-len", "1K"]);
    let reply = needle.post(PATH, &body(1, json!({"tools": weather()})));
    assert!(reply.status == 400 && reply.body.contains("has no tool calls"), "{}", reply.body);
}
