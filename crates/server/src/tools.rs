//! Calls of tools in the text of a completion.
//!
//! A chat template shows the tools to the model, and the model answers with calls in the form that it was trained on:
//!
//! ```text
//! Hermes, Qwen   text <tool_call>\n{"name": "f", "arguments": {...}}\n</tool_call>, several of them
//! Llama 3        {"name": "f", "parameters": {...}}, the whole answer or behind <|python_tag|>; several with ; between
//! ```
//!
//! [`ToolParser`] takes the text as it streams and gives content and calls; a grammar that forces calls is made by
//! [`crate::grammar`]. Nothing here runs a tool.

pub(crate) mod choice;

pub(crate) mod parser;

#[cfg(test)]
mod parser_fuzz;

mod call;

mod scanner;

use model::{ChatTemplate, Tokenizer};

/// How a model writes calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ToolFormat {
    /// `{"name", "arguments"}` between tags of their own.
    Hermes,
    /// `{"name", "parameters"}` alone.
    Llama,
}

impl ToolFormat {
    /// The format that a template asks its model for; `None` where it shows no tools, or wants calls in another form,
    /// or where the tags are control tokens, which have no text.
    pub(crate) fn of(template: &ChatTemplate, tokenizer: &Tokenizer) -> Option<Self> {
        let has = |word: &str| template.source().contains(word);
        let is_control = |tag: &str| tokenizer.token_id(tag).is_some_and(|id| tokenizer.is_special(id));
        if !has("tools") {
            return None;
        }
        // Other families write the same tags around XML.
        let tagged = has(HERMES_START) && has("arguments") && !has("<function=") && !has("<arg_key>");
        if tagged && !is_control(HERMES_START) && !is_control(HERMES_END) {
            return Some(ToolFormat::Hermes);
        }
        let bare = has("parameters") && (has(LLAMA_START) || has("<|start_header_id|>"));
        (bare && !has(HERMES_START)).then_some(ToolFormat::Llama)
    }

    /// What stands before a call: in front of every one, or, for Llama 3, perhaps in front of the first.
    fn start_tag(self) -> &'static str {
        match self {
            ToolFormat::Hermes => HERMES_START,
            ToolFormat::Llama => LLAMA_START,
        }
    }

    /// What stands behind every call.
    fn end_tag(self) -> Option<&'static str> {
        match self {
            ToolFormat::Hermes => Some(HERMES_END),
            ToolFormat::Llama => None,
        }
    }

    /// The texts around the arguments of a call, and between two calls, as templates write them.
    pub(crate) fn frame(self, name: &str) -> CallFrame {
        let name = serde_json::Value::from(name);
        match self {
            ToolFormat::Hermes => CallFrame {
                before: format!("{HERMES_START}\n{{\"name\": {name}, \"arguments\": "),
                behind: format!("}}\n{HERMES_END}"),
                between: "\n",
            },
            ToolFormat::Llama => {
                CallFrame { before: format!("{{\"name\": {name}, \"parameters\": "), behind: "}".into(), between: "; " }
            }
        }
    }
}

const HERMES_START: &str = "<tool_call>";
const HERMES_END: &str = "</tool_call>";
const LLAMA_START: &str = "<|python_tag|>";

/// What surrounds a call's arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CallFrame {
    /// From the call's first character to its arguments.
    pub(crate) before: String,
    /// From its arguments to its last character.
    pub(crate) behind: String,
    /// Between two calls.
    pub(crate) between: &'static str,
}

/// What a piece of text adds to the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ToolDelta {
    /// Text that belongs to no call.
    Content(String),
    /// A call begins; calls are numbered from 0.
    Call {
        /// Its number.
        index: usize,
        /// Its id, `call_SUFFIX_NUMBER`.
        id: String,
        /// The tool.
        name: String,
    },
    /// The JSON text of a call's arguments goes on.
    Arguments {
        /// The call's number.
        index: usize,
        /// What is added.
        text: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::parser::ToolParser;

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::new(source, "a test", "", "").expect("it parses")
    }

    #[test]
    fn formats_are_told_by_the_template() {
        let noise = crate::noise::opened();
        let check = |source: &str, expected| assert_eq!(ToolFormat::of(&template(source), &noise.tokenizer), expected);
        check(crate::noise::HERMES, Some(ToolFormat::Hermes));
        check(crate::noise::LLAMA3, Some(ToolFormat::Llama));
        check("{% for message in messages %}{{ message.content }}{% endfor %}", None);
        check("{{ tools }}<tool_call>\n<function=f><parameter=x></parameter></function></tool_call> arguments", None);
        assert_eq!(ToolFormat::of(noise.chat().expect("there is one"), &noise.tokenizer), Some(ToolFormat::Hermes));
    }

    #[test]
    fn a_framed_call_is_read_back() {
        for format in [ToolFormat::Hermes, ToolFormat::Llama] {
            let frame = format.frame("f");
            let one = format!("{}{{\"a\": 1}}{}", frame.before, frame.behind);
            let text = format!("{one}{}{one}", frame.between);
            let mut parser = ToolParser::new(format, vec!["f".into()], "7");
            let mut deltas = parser.push(&text);
            deltas.extend(parser.finish());
            let call = |index: usize| {
                let (id, name) = (format!("call_7_{index}"), "f".to_string());
                [ToolDelta::Call { index, id, name }, ToolDelta::Arguments { index, text: "{\"a\": 1}".into() }]
            };
            assert_eq!(deltas, [call(0), call(1)].concat());
        }
    }
}
