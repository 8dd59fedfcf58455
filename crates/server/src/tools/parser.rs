//! From the text of a completion, as it streams, to content and calls.
//!
//! ```text
//!            a tag                { of a call's          its last brace,
//!            or its place         arguments              its end tag
//!  Content ------------> Opening/Call ------> Arguments ------> Tail, After --> Content
//!     ^                       |                   | not JSON
//!     '--- it is no call -----'                   '------> Raw, up to the end tag
//! ```
//!
//! Only what may still become a tag or a call is held back: white space, the beginning of a tag, and an object until
//! its arguments begin. What turns out to be no call is content, so that no text is lost; white space beside a call
//! and the call's own syntax are not text. Arguments that break off or are no JSON are given as they are: the client
//! has seen their beginning.

use super::call::{Candidate, Verdict};
use super::scanner::{Broken, Scanner};
use super::{ToolDelta, ToolFormat};
use std::collections::VecDeque;

/// Text that is held back at most; a longer one becomes content.
const HELD_BYTES_MAX: usize = 16 << 10;

/// Reads the text of one completion. The result does not depend on how the text is cut.
#[derive(Debug)]
pub(crate) struct ToolParser {
    format: ToolFormat,
    tools: Vec<String>,
    id_suffix: String,
    state: State,
    /// Text of the states that wait, not yet given to anybody.
    held: String,
    /// Calls that have begun.
    calls: usize,
    /// Nothing but white space was read since the last call.
    behind_call: bool,
    deltas: Vec<ToolDelta>,
}

#[derive(Debug)]
enum State {
    /// Content; white space and the beginning of a tag are held.
    Content,
    /// Where a call's brace may come.
    Opening,
    /// An object that may be a call; it is held from its tag on.
    Call(Box<Candidate>),
    /// The arguments of a call.
    Arguments(Box<Scanner>),
    /// Arguments that are not JSON; the beginning of an end tag is held.
    Raw,
    /// The object behind its arguments; held in case it never ends.
    Tail(Box<Scanner>),
    /// Between an object and its end tag; white space and the tag's beginning are held.
    After,
}

impl ToolParser {
    /// A parser before the first character. `tools` are the names that may be called; ids of calls are made of
    /// `id_suffix`, which must differ between the choices and the requests of a process.
    pub(crate) fn new(format: ToolFormat, tools: Vec<String>, id_suffix: impl Into<String>) -> Self {
        ToolParser {
            format,
            tools,
            id_suffix: id_suffix.into(),
            state: start(format),
            held: String::new(),
            calls: 0,
            behind_call: false,
            deltas: Vec::new(),
        }
    }

    /// Takes text; gives what is certain with it. Neighbours of one kind come as one delta.
    pub(crate) fn push(&mut self, text: &str) -> Vec<ToolDelta> {
        let mut queue: VecDeque<char> = text.chars().collect();
        while let Some(c) = queue.pop_front() {
            // In reverse, so that they are read next and in order.
            for again in self.step(c).chars().rev() {
                queue.push_front(again);
            }
        }
        std::mem::take(&mut self.deltas)
    }

    /// The text has ended; gives what was held back.
    pub(crate) fn finish(mut self) -> Vec<ToolDelta> {
        let held = std::mem::take(&mut self.held);
        match self.state {
            State::Content | State::Opening if self.behind_call && held.chars().all(is_between) => {}
            State::Content | State::Opening | State::Call(_) => self.content(&held),
            State::Raw => self.arguments(&held),
            State::Arguments(_) | State::Tail(_) | State::After => {}
        }
        self.deltas
    }

    /// Calls that have begun: with one, the completion's finish reason is `tool_calls`.
    pub(crate) fn calls(&self) -> usize {
        self.calls
    }

    /// Reads one character; gives the text that must be read again in the new state.
    fn step(&mut self, c: char) -> String {
        if HELD_BYTES_MAX < self.held.len() {
            return self.refuse(c);
        }
        match std::mem::replace(&mut self.state, State::Content) {
            State::Content => self.step_content(c),
            State::Opening => self.step_opening(c),
            State::Call(candidate) => self.step_call(candidate, c),
            State::Arguments(scanner) => self.step_arguments(scanner, c),
            State::Raw => self.step_raw(c),
            State::Tail(scanner) => self.step_tail(scanner, c),
            State::After => self.step_after(c),
        }
    }

    fn step_content(&mut self, c: char) -> String {
        let begun = self.held.trim_start_matches(is_space);
        match tag_with(self.format.start_tag(), begun, c) {
            Tag::Whole => self.hold(c, State::Opening),
            Tag::Begun => self.hold(c, State::Content),
            Tag::No if begun.is_empty() && is_space(c) => self.hold(c, State::Content),
            Tag::No => {
                let held = std::mem::take(&mut self.held);
                if held.is_empty() {
                    self.content(c.encode_utf8(&mut [0; 4]));
                    return String::new();
                }
                // No tag has its first character again, so only `c` may begin another one.
                self.content(&held);
                c.into()
            }
        }
    }

    fn step_opening(&mut self, c: char) -> String {
        let tagged = self.held.contains('<');
        match c {
            '{' => self.step_call(Box::default(), c),
            c if is_space(c) => self.hold(c, State::Opening),
            // Llama 3 separates calls by it.
            ';' if self.behind_call && !tagged => self.hold(c, State::Opening),
            // Llama 3's tag may follow.
            _ if self.held.chars().all(is_space) => self.again(c),
            _ => self.refuse(c),
        }
    }

    fn step_call(&mut self, mut candidate: Box<Candidate>, c: char) -> String {
        match candidate.push(c, &self.tools) {
            Verdict::Open => self.hold(c, State::Call(candidate)),
            Verdict::No => self.refuse(c),
            Verdict::Begins { name } => {
                self.begin_call(name);
                self.arguments(c.encode_utf8(&mut [0; 4]));
                self.state = State::Arguments(Box::new(candidate.into_scanner()));
                String::new()
            }
            Verdict::Whole { name, arguments } => {
                self.begin_call(name);
                self.arguments(&arguments);
                self.end_object()
            }
        }
    }

    fn step_arguments(&mut self, mut scanner: Box<Scanner>, c: char) -> String {
        match scanner.push(c) {
            Err(Broken) => {
                self.state = State::Raw;
                return c.into();
            }
            Ok(_) => self.arguments(c.encode_utf8(&mut [0; 4])),
        }
        self.state = if scanner.depth() == 1 { State::Tail(scanner) } else { State::Arguments(scanner) };
        String::new()
    }

    fn step_raw(&mut self, c: char) -> String {
        let tag = self.format.end_tag().map_or(Tag::No, |tag| tag_with(tag, &self.held, c));
        match tag {
            Tag::Whole => {
                self.held.clear();
                self.behind_call = true;
                String::new()
            }
            Tag::Begun => self.hold(c, State::Raw),
            Tag::No => {
                self.state = State::Raw;
                let held = std::mem::take(&mut self.held);
                if held.is_empty() {
                    self.arguments(c.encode_utf8(&mut [0; 4]));
                    return String::new();
                }
                self.arguments(&held);
                c.into()
            }
        }
    }

    fn step_tail(&mut self, mut scanner: Box<Scanner>, c: char) -> String {
        match scanner.push(c) {
            Err(Broken) => self.again(c),
            Ok(_) if scanner.depth() == 0 => self.end_object(),
            Ok(_) => self.hold(c, State::Tail(scanner)),
        }
    }

    fn step_after(&mut self, c: char) -> String {
        let begun = self.held.trim_start_matches(is_space);
        match tag_with(self.format.end_tag().unwrap_or_default(), begun, c) {
            Tag::Whole => {
                self.held.clear();
                String::new()
            }
            Tag::Begun => self.hold(c, State::After),
            Tag::No if begun.is_empty() && is_space(c) => self.hold(c, State::After),
            Tag::No => self.again(c),
        }
    }

    /// Keeps `c` back.
    fn hold(&mut self, c: char, state: State) -> String {
        self.held.push(c);
        self.state = state;
        String::new()
    }

    /// Everything held, and `c`, is read again as content.
    fn again(&mut self, c: char) -> String {
        self.state = State::Content;
        let mut text = std::mem::take(&mut self.held);
        text.push(c);
        text
    }

    /// What is held is no call: its first character is content for certain, and behind it a call may begin.
    fn refuse(&mut self, c: char) -> String {
        let mut text = self.again(c);
        let space = text.len() - text.trim_start_matches(is_space).len();
        let first = text[space..].chars().next().map_or(0, char::len_utf8);
        let rest = text.split_off(space + first);
        self.content(&text);
        rest
    }

    fn begin_call(&mut self, name: String) {
        let (index, id) = (self.calls, format!("call_{}_{}", self.id_suffix, self.calls));
        self.calls += 1;
        self.behind_call = true;
        self.held.clear();
        self.deltas.push(ToolDelta::Call { index, id, name });
    }

    fn end_object(&mut self) -> String {
        self.held.clear();
        self.state = match self.format.end_tag() {
            Some(_) => State::After,
            None => State::Opening,
        };
        String::new()
    }

    fn content(&mut self, more: &str) {
        if more.is_empty() {
            return;
        }
        self.behind_call = false;
        match self.deltas.last_mut() {
            Some(ToolDelta::Content(text)) => text.push_str(more),
            _ => self.deltas.push(ToolDelta::Content(more.into())),
        }
    }

    fn arguments(&mut self, more: &str) {
        if more.is_empty() {
            return;
        }
        match self.deltas.last_mut() {
            Some(ToolDelta::Arguments { text, .. }) => text.push_str(more),
            _ => self.deltas.push(ToolDelta::Arguments { index: self.calls - 1, text: more.into() }),
        }
    }
}

/// A call of Llama 3 may be the answer's beginning.
fn start(format: ToolFormat) -> State {
    match format {
        ToolFormat::Hermes => State::Content,
        ToolFormat::Llama => State::Opening,
    }
}

enum Tag {
    Whole,
    Begun,
    No,
}

/// What `tag` is with `c` behind its beginning `begun`.
fn tag_with(tag: &str, begun: &str, c: char) -> Tag {
    match tag.strip_prefix(begun).and_then(|rest| rest.strip_prefix(c)) {
        Some("") => Tag::Whole,
        Some(_) => Tag::Begun,
        None => Tag::No,
    }
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\n' | '\r' | '\t')
}

/// What stands between calls and is no content.
fn is_between(c: char) -> bool {
    is_space(c) || c == ';'
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tools::ToolFormat::{Hermes, Llama};

    /// Content as it is, a call as `[id name arguments]`.
    fn check(format: ToolFormat, text: &str, expected: &str) {
        let mut parser = ToolParser::new(format, vec!["f".into(), "get_weather".into()], "s");
        let mut deltas = parser.push(text);
        deltas.extend(parser.finish());
        let mut shown = String::new();
        let mut open = false;
        for delta in deltas {
            if open && !matches!(delta, ToolDelta::Arguments { .. }) {
                shown.push(']');
                open = false;
            }
            match delta {
                ToolDelta::Content(text) => shown += &text,
                ToolDelta::Call { id, name, .. } => {
                    shown += &format!("[{id} {name} ");
                    open = true;
                }
                ToolDelta::Arguments { text, .. } => shown += &text,
            }
        }
        if open {
            shown.push(']');
        }
        assert_eq!(shown, expected, "{text}");
    }

    #[test]
    fn hermes_calls_stand_between_tags() {
        let check = |text: &str, expected: &str| check(Hermes, text, expected);
        check("Just <b>text</b> & more <", "Just <b>text</b> & more <");
        check("<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": [1]}}\n</tool_call>", "[call_s_0 f {\"a\": [1]}]");
        let one = "<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>";
        check(&format!("Let me see.\n\n{one}\n{one}\n"), "Let me see.[call_s_0 f {}][call_s_1 f {}]");
        check(&format!("\n{one}\nDone. "), "[call_s_0 f {}]\nDone. ");
        check(&format!("<<tool_<tool_call{one}"), "<<tool_<tool_call[call_s_0 f {}]");
        // Other keys, in any order, and the other family's word.
        check(
            "<tool_call>{\"id\": 1, \"name\": \"f\", \"parameters\": {\"x\": \"</tool_call>\"}, \"z\": 2}</tool_call>",
            "[call_s_0 f {\"x\": \"</tool_call>\"}]",
        );
        check(
            "<tool_call>{\"arguments\": {\"é\": 1}, \"name\": \"get\\u005fweather\"}</tool_call>",
            "[call_s_0 get_weather {\"é\": 1}]",
        );
    }

    #[test]
    fn what_is_no_call_is_content() {
        for text in [
            "<tool_call>\n{\"name\": \"unknown\", \"arguments\": {}}\n</tool_call>",
            "<tool_call>\n{\"name\": 5, \"arguments\": {}}\n</tool_call>",
            "<tool_call>\n{\"name\": \"f\", \"arguments\": [1]}\n</tool_call>",
            "<tool_call>\n{\"name\": \"f\"}\n</tool_call>",
            "<tool_call>\nf(1)\n</tool_call> and {\"name\": \"f\", \"arguments\": {}}",
            "<tool_call>\n{\"name\": \"f\", \"argu",
            "<tool_call>  ",
            "  \n ",
            "",
        ] {
            check(Hermes, text, text);
        }
        for text in [
            "{\"name\": \"f\"}",
            "{\"a\": 1}",
            " {\"name\": \"g\", \"parameters\": {}}",
            "<|python_tag|>print(1)",
            "; {",
            "a {\"name\": \"f\", \"parameters\": {}}",
        ] {
            check(Llama, text, text);
        }
        let one = "<tool_call>{\"name\":\"f\",\"arguments\":{}}</tool_call>";
        check(Hermes, &format!("<tool_call>{{\"x\": {one}"), "<tool_call>{\"x\":[call_s_0 f {}]");
    }

    #[test]
    fn llama_calls_are_the_answer_or_follow_the_tag() {
        let check = |text: &str, expected: &str| check(Llama, text, expected);
        let one = "{\"name\": \"f\", \"parameters\": {\"a\": \"}\"}}";
        check(one, "[call_s_0 f {\"a\": \"}\"}]");
        check(&format!("\n<|python_tag|>{one}\n"), "[call_s_0 f {\"a\": \"}\"}]");
        check(&format!("I call.<|python_tag|>{one}"), "I call.[call_s_0 f {\"a\": \"}\"}]");
        check(
            &format!("{one}; {one}\n{one};"),
            "[call_s_0 f {\"a\": \"}\"}][call_s_1 f {\"a\": \"}\"}][call_s_2 f {\"a\": \"}\"}]",
        );
        check(&format!("{one} Done; yes."), "[call_s_0 f {\"a\": \"}\"}] Done; yes.");
    }

    #[test]
    fn arguments_that_break_off_or_are_no_json_are_given_as_they_are() {
        let begun = "<tool_call>{\"name\": \"f\", \"arguments\": ";
        check(Hermes, &format!("{begun}{{\"a\": "), "[call_s_0 f {\"a\": ]");
        check(
            Hermes,
            &format!("{begun}{{\"a\": Paris <b>}}}}</tool_call>\nSo."),
            "[call_s_0 f {\"a\": Paris <b>}}]\nSo.",
        );
        check(Hermes, &format!("{begun}{{\"a\": 1</tool_call>"), "[call_s_0 f {\"a\": 1]");
        check(Hermes, &format!("{begun}{{}} oops </tool_call>"), "[call_s_0 f {}] oops </tool_call>");
        check(Hermes, &format!("{begun}{{}}}} oops"), "[call_s_0 f {}] oops");
        check(Llama, "{\"name\": \"f\", \"parameters\": {\"a\": x}}", "[call_s_0 f {\"a\": x}}]");
    }

    #[test]
    fn arguments_stream_and_little_is_held() {
        let mut parser = ToolParser::new(Hermes, vec!["f".into()], "s");
        let content = |text: &str| vec![ToolDelta::Content(text.into())];
        assert_eq!(parser.push("Hello "), content("Hello"));
        assert_eq!(parser.push("you <to"), content(" you"));
        assert_eq!(parser.push("ol_call>\n{\"name\": \"f\", \"argu"), []);
        let deltas = parser.push("ments\": {\"a");
        let call = ToolDelta::Call { index: 0, id: "call_s_0".into(), name: "f".into() };
        let arguments = |text: &str| ToolDelta::Arguments { index: 0, text: text.into() };
        assert_eq!(deltas, [call, arguments("{\"a")]);
        assert_eq!(parser.push("\": 1}"), [arguments("\": 1}")]);
        assert_eq!(parser.push("}\n</tool_call>"), []);
        assert_eq!((parser.calls(), parser.finish()), (1, vec![]));
    }

    #[test]
    fn an_object_without_end_is_not_held_for_ever() {
        let mut parser = ToolParser::new(Llama, vec!["f".into()], "s");
        let text = format!("{{\"x\": \"{}", "a".repeat(HELD_BYTES_MAX + 10));
        assert_eq!(parser.push(&text), [ToolDelta::Content(text)]);
    }
}
