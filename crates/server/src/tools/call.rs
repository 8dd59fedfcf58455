//! The object that a call may be, until its arguments begin.

use super::scanner::{Broken, Mark, Scanner};

/// What a candidate has become with a character.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It may still be a call.
    Open,
    /// It is one, and the character is the first of its arguments.
    Begins {
        /// The tool.
        name: String,
    },
    /// It is one, whole: its arguments stood before its name.
    Whole {
        /// The tool.
        name: String,
        /// The text of its arguments.
        arguments: String,
    },
    /// It is none.
    No,
}

/// An object that has neither become a call nor been refused.
#[derive(Clone, Debug, Default)]
pub(super) struct Candidate {
    scanner: Scanner,
    text: String,
    /// Where the key or the value in work begins.
    from: usize,
    key: Option<String>,
    name: Option<String>,
    arguments: Option<String>,
}

impl Candidate {
    /// Reads a character of it, the opening brace first.
    pub(super) fn push(&mut self, c: char, tools: &[String]) -> Verdict {
        let at = self.text.len();
        self.text.push(c);
        match self.scanner.push(c) {
            Err(Broken) => Verdict::No,
            Ok(Mark::Inside) => Verdict::Open,
            Ok(Mark::KeyStart) => {
                self.from = at;
                Verdict::Open
            }
            Ok(Mark::KeyEnd) => {
                self.key = serde_json::from_str(&self.text[self.from..]).ok();
                Verdict::Open
            }
            Ok(Mark::ValueStart) => self.begin_value(c, at),
            Ok(Mark::ValueEnd) => self.end_value(tools),
            Ok(Mark::End) => match (self.name.take(), self.arguments.take()) {
                (Some(name), Some(arguments)) => Verdict::Whole { name, arguments },
                _ => Verdict::No,
            },
        }
    }

    /// What reads the rest of the object, once its arguments have begun.
    pub(super) fn into_scanner(self) -> Scanner {
        self.scanner
    }

    fn begin_value(&mut self, c: char, at: usize) -> Verdict {
        self.from = at;
        match (self.part(), c) {
            (Part::Name, '"') | (Part::Other, _) => Verdict::Open,
            (Part::Arguments, '{') if self.arguments.is_none() => match self.name.take() {
                Some(name) => Verdict::Begins { name },
                None => Verdict::Open,
            },
            _ => Verdict::No,
        }
    }

    fn end_value(&mut self, tools: &[String]) -> Verdict {
        let value = &self.text[self.from..];
        match self.part() {
            Part::Name => self.name = serde_json::from_str(value).ok().filter(|name| tools.contains(name)),
            Part::Arguments => self.arguments = Some(value.to_owned()),
            Part::Other => {}
        }
        if self.part() == Part::Name && self.name.is_none() { Verdict::No } else { Verdict::Open }
    }

    fn part(&self) -> Part {
        match self.key.as_deref() {
            Some("name") => Part::Name,
            // Each family's word is taken from the other as well: fine-tunes mix them.
            Some("arguments" | "parameters") => Part::Arguments,
            _ => Part::Other,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Name,
    Arguments,
    Other,
}
