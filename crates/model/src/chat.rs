//! Chat templates: messages to the text that the model was trained on.
//!
//! Templates are Jinja, rendered as `transformers` does: `trim_blocks`, `lstrip_blocks`, Python's string and dict
//! methods, and the functions `raise_exception`, `strftime_now` and `tojson`. They come with the model, so rendering is
//! bounded: a number of template instructions and a size of output, after which it fails.

mod clock;
mod json;

use std::io;
use std::time::SystemTime;

use minijinja::{Environment, ErrorKind, context};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::Error;

/// Instructions of the template engine; a 1,000-message chat takes about a tenth.
const FUEL: u64 = 10_000_000;

/// Bytes of the rendered text beyond those of the messages and tools themselves.
const OUTPUT_BYTES_MAX: usize = 16 << 20;

/// Bytes of the template; the largest in the wild are near 20 KB.
const TEMPLATE_BYTES_MAX: usize = 1 << 20;

const NAME: &str = "chat_template";

/// One turn of a chat.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool`.
    pub role: String,
    /// The text; a list of parts or null where a client sends that and the template takes it.
    #[serde(default)]
    pub content: Value,
    /// Whatever else the template reads: `name`, `tool_calls`, `tool_call_id`.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl Message {
    /// A message of plain text.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: Value::String(content.into()), other: Map::new() }
    }
}

/// What a template is rendered with.
#[derive(Clone, Debug, Default)]
pub struct ChatInput<'a> {
    /// The turns, oldest first.
    pub messages: &'a [Message],
    /// JSON schemas of the tools, as clients send them; empty if there are none.
    pub tools: &'a [Value],
    /// End with the beginning of the assistant's turn.
    pub add_generation_prompt: bool,
    /// What `strftime_now` tells (as UTC); `None`: the time of the call.
    pub now: Option<SystemTime>,
    /// Further variables (`enable_thinking`, …), which never replace the ones above.
    pub variables: Map<String, Value>,
}

/// A parsed template with the special tokens that it may write. Read-only and shared between threads.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    file: String,
    source: String,
    bos_token: String,
    eos_token: String,
}

impl ChatTemplate {
    /// Parses a template. `file` names it in messages; the token texts are what `bos_token` and `eos_token` stand for.
    ///
    /// # Errors
    /// [`Error::Template`] if it does not parse or is larger than a megabyte.
    pub fn new(source: &str, file: &str, bos_token: &str, eos_token: &str) -> Result<Self, Error> {
        if TEMPLATE_BYTES_MAX < source.len() {
            let reason = format!("it has {} bytes, at most {TEMPLATE_BYTES_MAX} are read", source.len());
            return Err(Error::Template { file: file.to_owned(), reason });
        }
        let template = Self {
            file: file.to_owned(),
            source: without_generation_tags(source),
            bos_token: bos_token.to_owned(),
            eos_token: eos_token.to_owned(),
        };
        environment(None).template_from_named_str(NAME, &template.source).map_err(|error| template.failed(&error))?;
        Ok(template)
    }

    /// The template's text: it tells which form of tool calls the model was trained on.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The prompt text of a chat. Encode it without adding special tokens: the template has written them.
    ///
    /// # Errors
    /// [`Error::TemplateRefused`] with the template's own words if it does not accept the messages,
    /// [`Error::Template`] if it fails or exceeds its bounds.
    pub fn render(&self, input: &ChatInput) -> Result<String, Error> {
        let environment = environment(input.now);
        let template = environment.template_from_named_str(NAME, &self.source).map_err(|error| self.failed(&error))?;
        // Templates tell "no tools" by `none`, not by an empty list.
        let tools = (!input.tools.is_empty()).then_some(input.tools);
        let fixed = context! {
            messages => input.messages,
            tools => tools,
            add_generation_prompt => input.add_generation_prompt,
            bos_token => self.bos_token,
            eos_token => self.eos_token,
        };
        let given: usize = input.messages.iter().map(|message| message.content.to_string().len()).sum();
        let mut output = Bounded { bytes: Vec::new(), left: OUTPUT_BYTES_MAX.saturating_add(given.saturating_mul(2)) };
        let variables = context! { ..fixed, ..minijinja::Value::from_serialize(&input.variables) };
        template.render_captured_to(variables, &mut output).map_err(|error| self.failed(&error))?;
        String::from_utf8(output.bytes)
            .map_err(|_| Error::Template { file: self.file.clone(), reason: "it wrote invalid UTF-8".into() })
    }

    fn failed(&self, error: &minijinja::Error) -> Error {
        if error.kind() == ErrorKind::InvalidOperation
            && let Some(reason) = error.detail().and_then(|detail| detail.strip_prefix(REFUSED))
        {
            return Error::TemplateRefused { reason: reason.to_owned() };
        }
        let mut reason = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            reason = format!("{reason}: {cause}");
            source = cause.source();
        }
        Error::Template { file: self.file.clone(), reason }
    }
}

/// Marks the template's own refusals among the engine's errors.
const REFUSED: &str = "\u{1}refused: ";

fn environment(now: Option<SystemTime>) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_fuel(Some(FUEL));
    environment.set_recursion_limit(64);
    environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    // Widths are the one thing that could make a small template ask for a huge text.
    environment.remove_filter("format");
    environment.remove_filter("indent");
    environment.add_filter("indent", indent);
    environment.add_filter("tojson", json::to_json);
    environment.add_function("raise_exception", |reason: String| -> Result<String, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, format!("{REFUSED}{reason}")))
    });
    environment.add_function("strftime_now", move |format: String| {
        clock::format_utc(now.unwrap_or_else(SystemTime::now), &format)
    });
    environment
}

/// Jinja's `indent` for widths that a person would write.
fn indent(text: String, width: Option<usize>, first: Option<bool>, blank: Option<bool>) -> String {
    let spaces = " ".repeat(width.unwrap_or(4).min(json::INDENT_MAX));
    let mut lines = text.lines();
    let mut indented = match (lines.next(), first) {
        (Some(line), Some(true)) => format!("{spaces}{line}"),
        (line, _) => line.unwrap_or_default().to_owned(),
    };
    for line in lines {
        let margin = if line.is_empty() && blank != Some(true) { "" } else { &spaces };
        indented += &format!("\n{margin}{line}");
    }
    indented
}

/// Training-only tags (`{% generation %}`) mark what the assistant said; here they are blocks that always render.
fn without_generation_tags(source: &str) -> String {
    let mut text = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start + 2..].find("%}") else { break };
        let (tag, end) = (&rest[start + 2..start + 2 + length], start + 2 + length + 2);
        let word = tag.trim_matches(|c: char| c.is_whitespace() || matches!(c, '-' | '+'));
        text.push_str(&rest[..start]);
        match word {
            "generation" => text.push_str(&format!("{{%{}%}}", tag.replace(word, "if true"))),
            "endgeneration" => text.push_str(&format!("{{%{}%}}", tag.replace(word, "endif"))),
            _ => text.push_str(&rest[start..end]),
        }
        rest = &rest[end..];
    }
    text.push_str(rest);
    text
}

/// A writer that fails once its bound is reached.
struct Bounded {
    bytes: Vec<u8>,
    left: usize,
}

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.left < bytes.len() {
            return Err(io::Error::other("the rendered chat is larger than its bound"));
        }
        self.left -= bytes.len();
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
