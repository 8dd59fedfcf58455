//! Random tokens under a mask always give a text that follows the grammar, whatever the schema.

use super::schema::Schema;
use super::{Grammars, ResponseFormat, Rule};
use crate::noise::{Noise, opened};
use crate::tools::choice::Tools;
use crate::tools::parser::ToolParser;
use crate::tools::{ToolDelta, ToolFormat};
use engine::{ConstraintFactory, TokenMask};
use model::Opened;
use serde_json::{Value, json};

const SEEDS: u64 = 12;

/// Longer completions are cut off, as `max_tokens` does.
const TOKENS_MAX: usize = 3000;

fn grammars(opened: &Opened) -> Grammars {
    let (tokenizer, vocab) = (&opened.tokenizer, opened.config().vocab_size);
    Grammars::new(tokenizer, &opened.generation.end_tokens, vocab).expect("it spells JSON")
}

/// A completion of random tokens; its text, if it came to an end. `is_whole` says whether a text may end.
fn complete(
    opened: &Opened,
    grammar: &ConstraintFactory,
    seed: u64,
    is_whole: &dyn Fn(&str) -> bool,
) -> Option<String> {
    let (mut noise, mut constraint, mut tokens) = (Noise(seed), grammar.make(), Vec::new());
    let mut allowed = TokenMask::none(opened.config().vocab_size);
    let (ends, known) = (&opened.generation.end_tokens, opened.tokenizer.vocab_size() as u32);
    while tokens.len() < TOKENS_MAX {
        constraint.mask(&mut allowed).expect("it is within its bounds");
        let text = opened.tokenizer.decode(&tokens, false).expect("a byte-level vocabulary");
        let open: Vec<u32> = allowed.tokens().collect();
        let may_end = ends.iter().filter(|end| open.contains(end)).count();
        assert!(may_end == 0 || may_end == ends.len(), "seed {seed}: {text}");
        assert_eq!(0 < may_end, is_whole(&text), "seed {seed}: {text}");
        assert!(open.iter().all(|id| *id < known), "an id without text is allowed");
        assert!(open.iter().all(|id| ends.contains(id) || !opened.tokenizer.is_special(*id)));
        let token = open[noise.below(open.len())];
        if ends.contains(&token) {
            return Some(text);
        }
        constraint.advance(token).expect("the mask allowed it");
        tokens.push(token);
    }
    None
}

/// Numbers beyond f64 are JSON as well, so no number is read.
fn is_json(text: &str) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

fn check(schema: Value, is_valid: fn(&Value) -> bool) {
    let opened = opened();
    let json = ResponseFormat::Json(Schema::new(&schema, "response_format").expect("it is within its bounds"));
    let rule = Rule::of(&json, &Tools::read(None, None, None).expect("there are none"), None);
    let rule = rule.expect("it is one").expect("it is one");
    let grammar = grammars(&opened).compile(&rule).expect("it is supported");
    let is_whole = |text: &str| serde_json::from_str(text).is_ok_and(|value| is_valid(&value));
    for seed in 0..SEEDS {
        complete(&opened, &grammar, seed, &is_whole).unwrap_or_else(|| panic!("{schema} seed {seed} has no end"));
    }
}

fn has_only(value: &Value, keys: &[&str]) -> bool {
    value.as_object().is_some_and(|map| map.keys().all(|key| keys.contains(&key.as_str())))
}

fn is_within(value: &Value, low: i64, high: i64) -> bool {
    // A whole number may be written as -0.
    value.as_f64().is_some_and(|x| x.fract() == 0.0 && (low as f64..=high as f64).contains(&x))
}

#[test]
fn nested_objects() {
    check(
        json!({
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 12},
                "age": {"type": "integer", "minimum": 0, "maximum": 130},
                "tags": {"type": "array", "items": {"type": "string", "maxLength": 4}, "maxItems": 3},
                "inner": {
                    "type": "object",
                    "properties": {"on": {"type": "boolean"}, "größe": {"type": "null"}},
                    "required": ["on"],
                    "additionalProperties": false,
                },
            },
            "required": ["name", "age", "inner"],
            "additionalProperties": false,
        }),
        |value| {
            has_only(value, &["name", "age", "tags", "inner"])
                && value["name"].as_str().is_some_and(|name| name.chars().count() <= 12)
                && is_within(&value["age"], 0, 130)
                && value.get("tags").is_none_or(|tags| tags.as_array().is_some_and(|tags| tags.len() <= 3))
                && has_only(&value["inner"], &["on", "größe"])
                && value["inner"]["on"].is_boolean()
                && value["inner"].get("größe").is_none_or(Value::is_null)
        },
    );
}

#[test]
fn enums_and_constants() {
    check(json!({"enum": ["red", "é世界😀", 5, null, true, ""]}), |value| {
        json!(["red", "é世界😀", 5, null, true, ""]).as_array().is_some_and(|all| all.contains(value))
    });
    check(json!({"const": {"a": [1, "x\n\"y\""]}}), |value| *value == json!({"a": [1, "x\n\"y\""]}));
}

#[test]
fn arrays_with_bounds() {
    check(
        json!({"type": "array", "minItems": 2, "maxItems": 4,
            "items": {"type": "integer", "minimum": -5, "maximum": 5}}),
        |value| {
            let list = value.as_array();
            list.is_some_and(|list| (2..=4).contains(&list.len()) && list.iter().all(|x| is_within(x, -5, 5)))
        },
    );
    let pair = json!([{"type": "integer", "minimum": 0, "maximum": 9}, {"type": "boolean"}]);
    check(json!({"type": "array", "prefixItems": pair, "items": false, "minItems": 2}), |value| {
        value.as_array().is_some_and(|list| list.len() == 2 && is_within(&list[0], 0, 9) && list[1].is_boolean())
    });
}

#[test]
fn numbers_with_bounds() {
    let number = |low: &str, high: &str, a: f64, b: f64| json!({"type": "number", low: a, high: b});
    check(
        json!({
            "type": "object",
            "properties": {
                "x": number("minimum", "maximum", -1.5, 2.25),
                "y": number("exclusiveMinimum", "exclusiveMaximum", 0.0, 1.0),
            },
            "required": ["x", "y"],
            "additionalProperties": false,
        }),
        |value| {
            has_only(value, &["x", "y"])
                && value["x"].as_f64().is_some_and(|x| (-1.5..=2.25).contains(&x))
                && value["y"].as_f64().is_some_and(|y| 0.0 < y && y < 1.0)
        },
    );
    check(json!({"type": "integer", "multipleOf": 7, "minimum": 1, "maximum": 1000}), |value| {
        is_within(value, 1, 1000) && value.as_i64().is_some_and(|x| x % 7 == 0)
    });
}

#[test]
fn references() {
    let next = json!({"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]});
    let node = json!({
        "type": "object",
        "properties": {"v": {"type": "integer", "minimum": 0, "maximum": 9}, "next": next},
        "required": ["v", "next"],
        "additionalProperties": false,
    });
    fn is_node(value: &Value) -> bool {
        let next = value.get("next").is_some_and(|next| next.is_null() || is_node(next));
        has_only(value, &["v", "next"]) && is_within(&value["v"], 0, 9) && next
    }
    check(json!({"$defs": {"node": node}, "$ref": "#/$defs/node"}), is_node);
}

#[test]
fn strings() {
    check(json!({"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}), |value| {
        let Some([a, b, b'-', rest @ ..]) = value.as_str().map(str::as_bytes) else { return false };
        [a, b].into_iter().all(u8::is_ascii_uppercase) && rest.len() == 3 && rest.iter().all(u8::is_ascii_digit)
    });
    check(json!({"type": "string", "minLength": 2, "maxLength": 5}), |value| {
        value.as_str().is_some_and(|text| (2..=5).contains(&text.chars().count()))
    });
    check(json!({"type": "string", "pattern": "é+世", "maxLength": 8}), |value| {
        value.as_str().is_some_and(|text| text.contains("é世") && text.chars().count() <= 8)
    });
    check(json!({"type": "string", "format": "date"}), |value| {
        let Some([y1, y2, y3, y4, b'-', m1, m2, b'-', d1, d2]) = value.as_str().map(str::as_bytes) else {
            return false;
        };
        let two = |a: &u8, b: &u8| (a - b'0') * 10 + (b - b'0');
        [y1, y2, y3, y4, m1, m2, d1, d2].into_iter().all(u8::is_ascii_digit)
            && (1..=12).contains(&two(m1, m2))
            && (1..=31).contains(&two(d1, d2))
    });
}

#[test]
fn alternatives() {
    check(
        json!({"anyOf": [{"type": "boolean"}, {"type": "array", "items": {"type": "null"}, "maxItems": 2}]}),
        |value| {
            let list = value.as_array();
            value.is_boolean() || list.is_some_and(|list| list.len() <= 2 && list.iter().all(Value::is_null))
        },
    );
    check(json!({"type": ["integer", "null"], "minimum": 3, "maximum": 12}), |value| {
        value.is_null() || is_within(value, 3, 12)
    });
    let number = json!({"type": "object", "properties": {"k": {"const": "n"}, "v": {"enum": [1, 2]}},
        "required": ["k", "v"], "additionalProperties": false});
    let text = json!({"type": "object", "properties": {"k": {"const": "t"}, "v": {"enum": ["a"]}},
        "required": ["k", "v"], "additionalProperties": false});
    check(json!({"oneOf": [number, text]}), |value| {
        [json!({"k": "n", "v": 1}), json!({"k": "n", "v": 2}), json!({"k": "t", "v": "a"})].contains(value)
    });
}

#[test]
fn keys_by_pattern() {
    let schema = json!({
        "type": "object",
        "patternProperties": {"^k[0-9]$": {"type": "boolean"}},
        "additionalProperties": false,
        "minProperties": 1,
        "maxProperties": 3,
    });
    check(schema, |value| {
        let is_key = |key: &str| key.len() == 2 && key.starts_with('k') && key.as_bytes()[1].is_ascii_digit();
        value.as_object().is_some_and(|map| {
            (1..=3).contains(&map.len()) && map.iter().all(|(key, value)| is_key(key) && value.is_boolean())
        })
    });
}

#[test]
fn any_object() {
    let opened = opened();
    let json = ResponseFormat::read(Some(&json!({"type": "json_object"}))).expect("it is one");
    let rule = Rule::of(&json, &Tools::read(None, None, None).expect("there are none"), None);
    let grammar = grammars(&opened).compile(&rule.expect("it is one").expect("it is one")).expect("it compiles");
    let is_whole = |text: &str| text.starts_with('{') && is_json(text);
    let ended = (0..4 * SEEDS).filter(|seed| complete(&opened, &grammar, *seed, &is_whole).is_some()).count();
    assert!(SEEDS as usize <= ended, "{ended}");
}

/// Whether a text is objects with Llama 3's separator between them, and not the beginning of such a text.
fn are_whole_objects(mut text: &str) -> bool {
    loop {
        let mut values = serde_json::Deserializer::from_str(text).into_iter::<Value>();
        if !matches!(values.next(), Some(Ok(_))) {
            return false;
        }
        text = &text[values.byte_offset()..];
        text = match text.strip_prefix("; ") {
            Some(rest) => rest,
            None => return text.is_empty(),
        };
    }
}

/// Content, and calls with their arguments.
fn read(format: ToolFormat, tools: &Tools, text: &str) -> (String, Vec<(String, Value)>) {
    let mut parser = ToolParser::new(format, tools.names(), "s");
    let (mut content, mut calls): (String, Vec<(String, String)>) = Default::default();
    let mut deltas = parser.push(text);
    deltas.extend(parser.finish());
    for delta in deltas {
        match delta {
            ToolDelta::Content(text) => content += &text,
            ToolDelta::Call { name, .. } => calls.push((name, String::new())),
            ToolDelta::Arguments { index, text } => calls[index].1 += &text,
        }
    }
    let parse = |(name, arguments): (String, String)| {
        (name, serde_json::from_str(&arguments).unwrap_or_else(|error| panic!("{text}: {error}")))
    };
    (content, calls.into_iter().map(parse).collect())
}

fn two_tools() -> Value {
    let limited = json!({
        "type": "object",
        "properties": {"city": {"$ref": "#/$defs/city"}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
        "required": ["city"],
        "additionalProperties": false,
        "$defs": {"city": {"type": "string", "maxLength": 8}},
    });
    json!([
        {"type": "function", "function": {"name": "get_weather", "parameters": limited}},
        {"type": "function", "function": {"name": "now"}},
    ])
}

fn is_call((name, arguments): &(String, Value)) -> bool {
    match name.as_str() {
        "get_weather" => {
            has_only(arguments, &["city", "days"])
                && arguments["city"].as_str().is_some_and(|city| city.chars().count() <= 8)
                && arguments.get("days").is_none_or(|days| is_within(days, 1, 9))
        }
        "now" => *arguments == json!({}),
        _ => false,
    }
}

#[test]
fn calls_that_are_required() {
    let opened = opened();
    let grammars = grammars(&opened);
    let named = json!({"type": "function", "function": {"name": "get_weather"}});
    let mut counts = Vec::new();
    for format in [ToolFormat::Hermes, ToolFormat::Llama] {
        for (choice, parallel) in [(json!("required"), true), (json!("required"), false), (named.clone(), true)] {
            let tools = Tools::read(Some(&two_tools()), Some(&choice), Some(parallel)).expect("they are tools");
            let rule = Rule::of(&ResponseFormat::Text, &tools, Some(format)).expect("it is one").expect("it is one");
            let grammar = grammars.compile(&rule).expect("it compiles");
            let most = if parallel && choice == "required" { TOKENS_MAX } else { 1 };
            let is_whole = |text: &str| {
                let has_end = match format {
                    ToolFormat::Hermes => text.ends_with("}\n</tool_call>"),
                    ToolFormat::Llama => are_whole_objects(text),
                };
                has_end && {
                    let (content, calls) = read(format, &tools, text);
                    content.is_empty() && (1..=most).contains(&calls.len()) && calls.iter().all(is_call)
                }
            };
            for seed in 0..SEEDS {
                let text = complete(&opened, &grammar, seed, &is_whole).expect("it ends");
                counts.push(read(format, &tools, &text).1.len());
            }
        }
    }
    assert!(counts.iter().any(|count| 1 < *count), "{counts:?}");
}

#[test]
fn a_format_or_a_call() {
    let opened = opened();
    let schema = json!({"type": "object", "properties": {"a": {"enum": [1, 2]}}, "required": ["a"],
        "additionalProperties": false});
    let json = ResponseFormat::Json(Schema::new(&schema, "response_format").expect("it is within its bounds"));
    let tools = Tools::read(Some(&two_tools()), None, None).expect("they are tools");
    let format = ToolFormat::Hermes;
    let rule = Rule::of(&json, &tools, Some(format)).expect("it is one").expect("it is one");
    let grammar = grammars(&opened).compile(&rule).expect("it compiles");
    let is_answer = |text: &str| serde_json::from_str(text).is_ok_and(|value: Value| value["a"].is_i64());
    let is_whole = |text: &str| {
        is_answer(text)
            || text.ends_with("</tool_call>") && {
                let (content, calls) = read(format, &tools, text);
                content.is_empty() && !calls.is_empty() && calls.iter().all(is_call)
            }
    };
    let texts: Vec<_> =
        (0..3 * SEEDS).map(|seed| complete(&opened, &grammar, seed, &is_whole).expect("it ends")).collect();
    let answers = texts.iter().filter(|text| is_answer(text)).count();
    assert!(0 < answers && answers < texts.len(), "{answers}");
}
