//! The real engine, the noise model and a grammar: what ends by itself is whole.

use super::schema::Schema;
use super::{Grammars, ResponseFormat, Rule};
use crate::noise::opened;
use crate::tools::choice::Tools;
use crate::tools::parser::ToolParser;
use crate::tools::{ToolDelta, ToolFormat};
use backend::Sampling;
use engine::{ConstraintFactory, Event, FinishReason, Request, Source};
use kv::TokenId;
use model::Opened;
use serde_json::{Value, json};
use testing::rig::{Rig, RigOptions};

const CHOICES: usize = 3;

/// How each choice of a request ended, and its tokens but for the end token.
fn complete(rig: &Rig, opened: &Opened, grammar: &ConstraintFactory, seed: u64) -> Vec<(FinishReason, Vec<TokenId>)> {
    let prompt = opened.tokenizer.encode("<|im_start|>user\nWrite.<|im_end|>\n<|im_start|>assistant\n", false);
    let request = Request {
        sampling: Sampling { temperature: 1.0, seed, ..Sampling::default() },
        choices: CHOICES,
        constraint: Some(grammar.clone()),
        end_tokens: opened.generation.end_tokens.clone(),
        ..Request::new(Source::Prompt(prompt.expect("it is text")), rig.attention("dense", |_| ()), 400)
    };
    let mut choices = vec![(FinishReason::Length, Vec::new()); CHOICES];
    for event in rig.engine.submit(request).expect("there is room") {
        match event {
            Event::Token(token) => choices[token.choice as usize].1.push(token.token),
            Event::Finished(end) => {
                assert_eq!(end.error, None);
                choices[end.choice as usize].0 = end.reason;
            }
            Event::Refused(refusal) => panic!("{refusal}"),
            Event::Failed(why) => panic!("{why}"),
            _ => {}
        }
    }
    for (reason, tokens) in &mut choices {
        let ends = tokens.last().is_some_and(|token| opened.generation.end_tokens.contains(token));
        assert_eq!(*reason == FinishReason::Stop, ends);
        tokens.truncate(tokens.len() - usize::from(ends));
    }
    choices
}

fn start(opened: &Opened) -> (Rig, Grammars) {
    let grammars = Grammars::new(&opened.tokenizer, &opened.generation.end_tokens, opened.config().vocab_size);
    (Rig::start(opened, None, RigOptions::new(4, 1024)), grammars.expect("it spells JSON"))
}

#[test]
fn what_ends_by_itself_follows_its_schema() {
    let opened = opened();
    let (rig, grammars) = start(&opened);
    let none = Tools::read(None, None, None).expect("there are none");
    let person = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 10},
            "age": {"type": "integer", "minimum": 0, "maximum": 130},
            "colours": {"type": "array", "items": {"enum": ["red", "grün"]}, "maxItems": 3},
        },
        "required": ["name", "age", "colours"],
        "additionalProperties": false,
    });
    let is_person = |value: &Value| {
        let is_colour = |colour: &Value| colour == "red" || colour == "grün";
        value.as_object().is_some_and(|map| map.len() == 3)
            && value["name"].as_str().is_some_and(|name| (1..=10).contains(&name.chars().count()))
            && value["age"].as_f64().is_some_and(|age| age.fract() == 0.0 && (0.0..=130.0).contains(&age))
            && value["colours"].as_array().is_some_and(|list| list.len() <= 3 && list.iter().all(is_colour))
    };
    let pair = json!({"type": "array", "prefixItems": [{"type": "boolean"}, {"type": "null"}], "items": false,
        "minItems": 2});
    let pairs = json!({"type": "array", "minItems": 1, "maxItems": 4, "items": pair});
    let is_pairs = |value: &Value| {
        let is_pair =
            |pair: &Value| pair.as_array().is_some_and(|p| p.len() == 2 && p[0].is_boolean() && p[1].is_null());
        value.as_array().is_some_and(|list| (1..=4).contains(&list.len()) && list.iter().all(is_pair))
    };
    let object = json!({"type": "json_object"});
    let schema = |schema: &Value| ResponseFormat::Json(Schema::new(schema, "schema").expect("it is small"));
    type IsValid<'a> = &'a dyn Fn(&Value) -> bool;
    let cases: [(ResponseFormat, IsValid); 3] = [
        (schema(&person), &is_person),
        (schema(&pairs), &is_pairs),
        (ResponseFormat::read(Some(&object)).expect("it is one"), &Value::is_object),
    ];
    for (format, is_valid) in cases {
        let rule = Rule::of(&format, &none, None).expect("it is one").expect("it is one");
        let grammar = grammars.compile(&rule).expect("it compiles");
        let mut texts = Vec::new();
        for seed in 0..6 {
            for (reason, tokens) in complete(&rig, &opened, &grammar, seed) {
                let text = opened.tokenizer.decode(&tokens, true).expect("a byte-level vocabulary");
                let value = serde_json::from_str(&text);
                match reason {
                    FinishReason::Stop => {
                        assert!(value.is_ok_and(|value| is_valid(&value)), "{format:?} seed {seed}: {text}");
                        texts.push(text);
                    }
                    // Cut off, it is the beginning of a whole text.
                    FinishReason::Length => assert_eq!(tokens.len(), 400),
                    other => panic!("{other:?}"),
                }
            }
        }
        assert!(6 <= texts.len(), "{format:?}: {} of 18 ended", texts.len());
        texts.sort();
        texts.dedup();
        assert!(3 <= texts.len(), "{format:?}: {texts:?}");
    }
}

#[test]
fn calls_that_are_required_are_made() {
    let opened = opened();
    let (rig, grammars) = start(&opened);
    let parameters = json!({"type": "object", "properties": {"city": {"type": "string", "maxLength": 6}},
        "required": ["city"], "additionalProperties": false});
    let tools = json!([
        {"type": "function", "function": {"name": "get_weather", "parameters": parameters}},
        {"type": "function", "function": {"name": "now"}},
    ]);
    let tools = Tools::read(Some(&tools), Some(&json!("required")), Some(false)).expect("they are tools");
    for format in [ToolFormat::Hermes, ToolFormat::Llama] {
        let rule = Rule::of(&ResponseFormat::Text, &tools, Some(format)).expect("it is one").expect("it is one");
        let grammar = grammars.compile(&rule).expect("it compiles");
        let mut ended = 0;
        for seed in 0..4 {
            for (reason, tokens) in complete(&rig, &opened, &grammar, seed) {
                let mut parser = ToolParser::new(format, tools.names(), "1");
                let mut text = opened.tokenizer.detokenizer(&[], true);
                let mut deltas = Vec::new();
                for token in tokens {
                    deltas.extend(parser.push(&text.push(token).expect("a byte-level vocabulary")));
                }
                if reason != FinishReason::Stop {
                    continue;
                }
                deltas.extend(parser.push(&text.finish().expect("a byte-level vocabulary")));
                let calls = parser.calls();
                deltas.extend(parser.finish());
                let Some((ToolDelta::Call { name, .. }, rest)) = deltas.split_first() else { panic!("{deltas:?}") };
                let pieces = rest.iter().map(|delta| match delta {
                    ToolDelta::Arguments { index: 0, text } => text.as_str(),
                    other => panic!("{other:?}"),
                });
                let arguments: Value = serde_json::from_str(&pieces.collect::<String>()).expect("arguments are JSON");
                let city = arguments.get("city").and_then(Value::as_str);
                let is_valid = match name.as_str() {
                    "get_weather" => city.is_some_and(|city| city.chars().count() <= 6),
                    _ => arguments == json!({}),
                };
                assert!(calls == 1 && is_valid, "{deltas:?}");
                ended += 1;
            }
        }
        assert!(6 <= ended, "{format:?}: {ended} of 12 ended");
    }
}
