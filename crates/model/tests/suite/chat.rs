//! Chat templates render as `transformers` renders them: see `tools/make_chat_goldens.py`.

use std::collections::BTreeMap;
use std::time::{Duration, UNIX_EPOCH};

use serde_json::{Map, Value};
use spindle_model::{ChatInput, ChatTemplate, Error, Message};

const TEMPLATES: [(&str, &str); 4] = [
    ("blocks", include_str!("templates/blocks.jinja")),
    ("llama3", include_str!("templates/llama3.jinja")),
    ("mistral", include_str!("templates/mistral.jinja")),
    ("qwen", include_str!("templates/qwen.jinja")),
];

#[derive(serde::Deserialize)]
struct Chat {
    messages: Vec<Message>,
    #[serde(default)]
    tools: Vec<Value>,
    #[serde(default)]
    add_generation_prompt: bool,
    #[serde(default)]
    variables: Map<String, Value>,
}

#[test]
fn templates_of_real_models_render_as_the_reference_does() {
    let chats: BTreeMap<String, Chat> = serde_json::from_str(include_str!("templates/chats.json")).unwrap();
    let expected: BTreeMap<String, String> = serde_json::from_str(include_str!("templates/expected.json")).unwrap();
    let mut compared = 0;
    for (name, source) in TEMPLATES {
        let template = ChatTemplate::new(source, name, "<s>", "</s>").unwrap();
        for (chat_name, chat) in &chats {
            let input = ChatInput {
                messages: &chat.messages,
                tools: &chat.tools,
                add_generation_prompt: chat.add_generation_prompt,
                now: None,
                variables: chat.variables.clone(),
            };
            let rendered = match template.render(&input) {
                Ok(text) => text,
                Err(Error::TemplateRefused { reason }) => format!("refused: {reason}"),
                Err(error) => panic!("{name}/{chat_name}: {error}"),
            };
            assert_eq!(rendered, expected[&format!("{name}/{chat_name}")], "{name}/{chat_name}");
            compared += 1;
        }
    }
    assert_eq!(compared, expected.len());
}

fn render(source: &str) -> Result<String, String> {
    let messages = [Message::new("user", "hi")];
    let now = Some(UNIX_EPOCH + Duration::from_secs(1_709_210_096)); // 2024-02-29 12:34:56 UTC, a Thursday
    let input = ChatInput { messages: &messages, now, ..ChatInput::default() };
    let template = ChatTemplate::new(source, "t.jinja", "<s>", "</s>").map_err(|error| error.to_string())?;
    template.render(&input).map_err(|error| error.to_string())
}

#[test]
fn the_clock_is_given() {
    let text = render("{{ strftime_now('%d %b %Y|%A %B %H:%M:%S|%j') }}").unwrap();
    assert_eq!(text, "29 Feb 2024|Thursday February 12:34:56|%j");
}

#[test]
fn failures_say_what_and_where() {
    let check = |source: &str, message: &str| assert_eq!(render(source).unwrap_err(), message);
    check("{{ raise_exception('Only users.') }}", "the chat template does not accept these messages: Only users.");
    check(
        "a\n{% for x in %}",
        "the chat template of t.jinja failed: syntax error: unexpected end of block (in chat_template:2)",
    );
    let error = render("{{ nothing.at.all }}").unwrap_err();
    assert!(error.starts_with("the chat template of t.jinja failed: undefined value"), "{error}");
}

#[test]
fn rendering_is_bounded() {
    let (begin, end) = ("{% for a in range(9999) %}".repeat(3), "{% endfor %}".repeat(3));
    let endless = format!("{begin}x{end}");
    let error = render(&endless).unwrap_err();
    assert!(error.contains("engine ran out of fuel") || error.contains("larger than its bound"), "{error}");
    for source in ["{{ 'x' * 99999999999 }}", "{{ 'x' | indent(99999999999) }}", "{{ [1] | tojson(indent=99999999) }}"]
    {
        let _ = render(source);
    }
    let error = render(&" ".repeat(2 << 20)).unwrap_err();
    assert!(error.ends_with("at most 1048576 are read"), "{error}");
}
