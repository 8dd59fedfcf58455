//! What cannot be followed is refused with the field and the reason, and no schema takes the process down.

use super::schema::Schema;
use super::{GrammarError, Grammars, ResponseFormat, Rule};
use crate::noise::{Noise, opened};
use crate::tools::ToolFormat;
use crate::tools::choice::Tools;
use engine::{ConstraintFactory, TokenMask};
use serde_json::{Map, Value, json};

fn grammars() -> Grammars {
    let opened = opened();
    let (tokenizer, vocab) = (&opened.tokenizer, opened.config().vocab_size);
    Grammars::new(tokenizer, &opened.generation.end_tokens, vocab).expect("it spells JSON")
}

fn compile(schema: &Value) -> Result<ConstraintFactory, GrammarError> {
    let json = ResponseFormat::Json(Schema::new(schema, "schema")?);
    let tools = Tools::read(None, None, None).expect("there are none");
    let rule = Rule::of(&json, &tools, None).expect("it is one").expect("it is one");
    grammars().compile(&rule)
}

fn refused(schema: &Value) -> String {
    compile(schema).err().map_or("supported".into(), |error| error.to_string())
}

#[test]
fn schemas_that_are_not_supported() {
    let check = |schema: Value, expected: &str| assert_eq!(refused(&schema), format!("schema: {expected}"), "{schema}");
    check(json!({"type": "array", "uniqueItems": true}), "keywords that are not supported: [\"uniqueItems\"]");
    check(json!({"type": "strin"}), "Invalid type: strin");
    check(json!({"type": 5}), "type must be a string or array of strings");
    check(
        json!({"type": "integer", "minimum": 5, "maximum": 4}),
        "Unsatisfiable schema: minimum (5) is greater than maximum (4)",
    );
    check(
        json!({"oneOf": [{"type": "integer"}, {"type": "number"}]}),
        "oneOf whose options are not told apart is not supported: use anyOf",
    );
    check(json!({"$ref": "#/$defs/none"}), "Reference segment '$defs' not found in '#/$defs/none'.");
    check(json!({"$ref": "https://example.com/a"}), "$ref may point into the schema itself only (#/...)");
    let pattern = |pattern: &str| json!({"type": "string", "pattern": pattern});
    check(pattern("("), "a pattern is not supported: error: unclosed group");
    check(
        pattern("(?=a)b"),
        "a pattern is not supported: error: look-around, including look-ahead and look-behind, is not supported",
    );
    check(json!({"type": "string", "format": "nothing"}), "Unknown format: nothing");
    // The compiler's own options are not the request's to set.
    let lenient = json!({"x-guidance": {"lenient": true}, "type": "string", "format": "nothing"});
    check(lenient, "Unknown format: nothing");
    // llguidance cuts what it repeats in the middle of a character, and panics.
    check(json!({"$ref": [format!("a{}", "é".repeat(60))]}), "it cannot be made a grammar");
    let many: Map<String, Value> = (0..401).map(|at| (at.to_string(), json!({}))).collect();
    check(json!({"anyOf": [{"properties": many}]}), "has an object with more than 400 properties");
    let long = refused(&json!({"type": "object", "required": ["é".repeat(400)], "additionalProperties": false}));
    assert!(
        long.starts_with("schema: Unsatisfiable schema: required property 'éé") && long.ends_with("é..."),
        "{long}"
    );
}

#[test]
fn an_error_names_the_tool_that_it_is_about() {
    let tool = |name: &str, parameters: Value| {
        let function = json!({"name": name, "parameters": parameters});
        json!({"type": "function", "function": function})
    };
    let check = |tools: Value, expected: &str| {
        let tools = Tools::read(Some(&tools), Some(&json!("required")), None).expect("they are tools");
        let rule = Rule::of(&ResponseFormat::Text, &tools, Some(ToolFormat::Hermes));
        let compiled = rule.and_then(|rule| grammars().compile(&rule.expect("calls are required")).map(|_| ()));
        assert_eq!(compiled.map_err(|error| error.to_string()), Err(expected.into()));
    };
    check(
        json!([tool("f", json!({"type": "object"})), tool("g", json!({"type": "strin"}))]),
        "tools[1].function.parameters: Invalid type: strin",
    );
    check(json!([tool("f", json!({"$ref": [format!("a{}", "é".repeat(60))]}))]), "tools: it cannot be made a grammar");
    let text = json!({"description": "x".repeat(40_000)});
    check(
        json!([tool("f", text.clone()), tool("g", text.clone())]),
        "tools: their parameters have 80036 bytes and may have 65536 together",
    );
    let format =
        ToolFormat::of(&model::ChatTemplate::new("", "a test", "", "").expect("it parses"), &opened().tokenizer);
    let tools = Tools::read(Some(&json!([tool("f", text)])), None, None).expect("they are tools");
    let refused = Rule::of(&ResponseFormat::Text, &tools, format).map_err(|error| error.to_string());
    let reason = "the model's chat template has no tool calls of a kind that is known here (Hermes, Llama 3)";
    assert_eq!(refused, Err(format!("tools: {reason}")));
}

#[test]
fn vocabularies_that_cannot_be_constrained() {
    let noise = opened();
    let made = |opened: &model::Opened, ends: &[u32]| Grammars::new(&opened.tokenizer, ends, 320).err();
    assert_eq!(made(&noise, &[290]), None);
    let endless = "the model names no end token, so a constrained answer would never end";
    assert_eq!(made(&noise, &[320]).as_deref(), Some(endless));
    let needle = model::open(&model::ModelSource::Bundled).expect("it is in the binary");
    let closed = "the model's vocabulary cannot spell JSON";
    assert_eq!(made(&needle, &[2]).as_deref(), Some(closed));
}

/// A chain of `$defs`, each made of the next one's reference.
fn chain(links: usize, link: impl Fn(Value) -> Value, last: Value) -> Value {
    let mut defs: Map<String, Value> =
        (0..links).map(|at| (at.to_string(), link(json!({"$ref": format!("#/$defs/{}", at + 1)})))).collect();
    defs.insert(links.to_string(), last);
    json!({"$defs": defs, "$ref": "#/$defs/0"})
}

/// Schemas whose sizes multiply: each is refused, or followed within bounds.
#[test]
fn schemas_that_look_small_and_are_not() {
    let list = |items: Value| json!({"type": "array", "minItems": 100, "items": items});
    let deep = (0..30).fold(json!({"type": "array", "maxItems": 100}), |inner, _| list(inner));
    let all = |count: usize, one: &dyn Fn(usize) -> Value| (0..count).map(one).collect::<Vec<_>>();
    let properties: Map<String, Value> = (0..400).map(|at| (at.to_string(), json!({}))).collect();
    let text = |pattern: &str| json!({"type": "string", "pattern": pattern});
    for schema in [
        chain(1900, |next| next, json!({"type": "null"})),
        chain(900, |next| json!({"type": "array", "items": next}), json!({"type": "null"})),
        chain(900, |next| json!({"anyOf": [next, {"type": "null"}]}), json!({"type": "null"})),
        chain(
            1000,
            |mut next| {
                next["type"] = "object".into();
                next
            },
            json!({"type": "object"}),
        ),
        chain(20, |next| json!({"type": "array", "prefixItems": [next, next]}), json!({"type": "null"})),
        json!({"type": "object", "properties": properties, "additionalProperties": false}),
        json!({"enum": all(6000, &|at| json!(format!("x{at}")))}),
        json!({"enum": all(6000, &|at| json!(at * 7919 % 100_000))}),
        json!({"anyOf": all(1500, &|at| text(&format!("{at}.*")))}),
        json!({"type": "array", "minItems": 1_000_000, "maxItems": 2_000_000}),
        json!({"type": "array", "maxItems": u64::MAX}),
        json!({"type": "string", "minLength": 100_000, "maxLength": 1_000_000}),
        text("(a|b|ab)*{1,1000}(.*x.{50}){20}"),
        text("^(([a-z])+.)+[A-Z]([a-z])+$"),
        text("\\p{L}{1000}"),
        text("^((((a{1,100}){1,100}){1,100}){1,100}){1,100}$"),
        text(&"(".repeat(10_000)),
        deep,
    ] {
        let Ok(grammar) = compile(&schema) else { continue };
        let (mut noise, mut constraint, mut allowed) = (Noise(7), grammar.make(), TokenMask::none(320));
        for _ in 0..200 {
            if constraint.mask(&mut allowed).is_err() {
                break;
            }
            let open: Vec<u32> = allowed.tokens().collect();
            if constraint.advance(open[noise.below(open.len())]).is_err() {
                break;
            }
        }
    }
}
