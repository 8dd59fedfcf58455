//! JSON read character by character: where its top-level object's keys and values begin and end, and whether it still
//! is JSON. It keeps no text; positions are the caller's.

/// Containers inside one another; deeper text counts as broken. `serde_json` reads as many.
const DEPTH_MAX: usize = 127;

/// What a character means for the outermost object; everything deeper is [`Mark::Inside`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// Nothing that the reader of the outermost object must know.
    Inside,
    /// The opening quote of one of its keys.
    KeyStart,
    /// The closing quote of one of its keys.
    KeyEnd,
    /// The first character of one of its values.
    ValueStart,
    /// The last character of one of its values that is a string, an object or a list.
    ValueEnd,
    /// Its closing brace: nothing may follow.
    End,
}

/// The text is not JSON, whatever follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Broken;

/// Reads one object.
#[derive(Clone, Debug, Default)]
pub(super) struct Scanner {
    /// Open containers, outermost first.
    open: Vec<Container>,
    expect: Expect,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Container {
    Object,
    List,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Expect {
    /// The brace that begins it all.
    #[default]
    Start,
    /// A key, or the end of an object that is empty yet.
    FirstKey,
    Key,
    Colon,
    Value,
    /// A value, or the end of a list that is empty yet.
    FirstValue,
    /// A comma or the container's end.
    Next,
    String(Text, Place),
    /// The rest of `true`, `false` or `null`.
    Word(&'static str),
    Number(Digits),
    Nothing,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Key,
    Value,
}

/// Inside a string.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Text {
    Plain,
    Escape,
    /// Hexadecimal digits to come.
    Unicode(u8),
}

/// Inside a number: what was read last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Digits {
    Minus,
    Zero,
    Whole,
    Point,
    Fraction,
    Exponent,
    PowerSign,
    Power,
}

impl Scanner {
    /// Containers that are open.
    pub(super) fn depth(&self) -> usize {
        self.open.len()
    }

    /// Reads one character.
    ///
    /// # Errors
    /// It cannot stand here in JSON; the scanner is then of no further use.
    pub(super) fn push(&mut self, c: char) -> Result<Mark, Broken> {
        if let Expect::Number(digits) = self.expect {
            match digits.after(c) {
                Some(digits) => return self.inside(Expect::Number(digits)),
                None if digits.may_end() => self.expect = Expect::Next,
                None => return Err(Broken),
            }
        }
        match (self.expect, c) {
            (Expect::String(text, place), c) => self.push_text(text, place, c),
            (Expect::Word(rest), c) => match rest.strip_prefix(c) {
                Some("") => self.inside(Expect::Next),
                Some(rest) => self.inside(Expect::Word(rest)),
                None => Err(Broken),
            },
            (_, ' ' | '\n' | '\r' | '\t') => Ok(Mark::Inside),
            (Expect::Start, '{') => self.enter(Container::Object),
            (Expect::FirstKey | Expect::Key, '"') => {
                self.expect = Expect::String(Text::Plain, Place::Key);
                self.marked(Mark::KeyStart)
            }
            (Expect::Colon, ':') => self.inside(Expect::Value),
            (Expect::Value | Expect::FirstValue, c) if c != ']' => self.begin_value(c),
            (Expect::Next, ',') => self.inside(match self.open.last() {
                Some(Container::Object) => Expect::Key,
                _ => Expect::Value,
            }),
            (Expect::FirstKey | Expect::Next, '}') => self.leave(Container::Object),
            (Expect::FirstValue | Expect::Next, ']') => self.leave(Container::List),
            _ => Err(Broken),
        }
    }

    fn inside(&mut self, expect: Expect) -> Result<Mark, Broken> {
        self.expect = expect;
        Ok(Mark::Inside)
    }

    /// `mark` where the reader of the outermost object must know.
    fn marked(&self, mark: Mark) -> Result<Mark, Broken> {
        Ok(if self.open.len() == 1 { mark } else { Mark::Inside })
    }

    fn begin_value(&mut self, c: char) -> Result<Mark, Broken> {
        let mark = self.marked(Mark::ValueStart);
        self.expect = match c {
            '{' => return self.enter(Container::Object).and(mark),
            '[' => return self.enter(Container::List).and(mark),
            '"' => Expect::String(Text::Plain, Place::Value),
            't' => Expect::Word("rue"),
            'f' => Expect::Word("alse"),
            'n' => Expect::Word("ull"),
            '-' => Expect::Number(Digits::Minus),
            '0' => Expect::Number(Digits::Zero),
            '1'..='9' => Expect::Number(Digits::Whole),
            _ => return Err(Broken),
        };
        mark
    }

    fn enter(&mut self, container: Container) -> Result<Mark, Broken> {
        if DEPTH_MAX <= self.open.len() {
            return Err(Broken);
        }
        self.open.push(container);
        self.inside(match container {
            Container::Object => Expect::FirstKey,
            Container::List => Expect::FirstValue,
        })
    }

    fn leave(&mut self, container: Container) -> Result<Mark, Broken> {
        if self.open.pop() != Some(container) {
            return Err(Broken);
        }
        if self.open.is_empty() {
            self.expect = Expect::Nothing;
            return Ok(Mark::End);
        }
        self.expect = Expect::Next;
        self.marked(Mark::ValueEnd)
    }

    fn push_text(&mut self, text: Text, place: Place, c: char) -> Result<Mark, Broken> {
        let text = match (text, c) {
            (Text::Plain, '"') if place == Place::Key => {
                self.expect = Expect::Colon;
                return self.marked(Mark::KeyEnd);
            }
            (Text::Plain, '"') => {
                self.expect = Expect::Next;
                return self.marked(Mark::ValueEnd);
            }
            (Text::Plain, '\\') => Text::Escape,
            (Text::Plain, c) if '\u{20}' <= c => Text::Plain,
            (Text::Escape, 'u') => Text::Unicode(4),
            (Text::Escape, '"' | '\\' | '/' | 'b' | 'f' | 'n' | 'r' | 't') => Text::Plain,
            (Text::Unicode(1), c) if c.is_ascii_hexdigit() => Text::Plain,
            (Text::Unicode(left), c) if c.is_ascii_hexdigit() => Text::Unicode(left - 1),
            _ => return Err(Broken),
        };
        self.inside(Expect::String(text, place))
    }
}

impl Digits {
    /// What the number is behind `c`, if `c` belongs to it.
    fn after(self, c: char) -> Option<Digits> {
        Some(match (self, c) {
            (Digits::Minus, '0') => Digits::Zero,
            (Digits::Minus | Digits::Whole, '0'..='9') => Digits::Whole,
            (Digits::Zero | Digits::Whole, '.') => Digits::Point,
            (Digits::Point | Digits::Fraction, '0'..='9') => Digits::Fraction,
            (Digits::Zero | Digits::Whole | Digits::Fraction, 'e' | 'E') => Digits::Exponent,
            (Digits::Exponent, '+' | '-') => Digits::PowerSign,
            (Digits::Exponent | Digits::PowerSign | Digits::Power, '0'..='9') => Digits::Power,
            _ => return None,
        })
    }

    fn may_end(self) -> bool {
        matches!(self, Digits::Zero | Digits::Whole | Digits::Fraction | Digits::Power)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Marks as letters under the text they belong to; `!` where it breaks.
    fn marks(text: &str) -> String {
        let mut scanner = Scanner::default();
        let mut marks = String::new();
        for c in text.chars() {
            marks.push(match scanner.push(c) {
                Ok(Mark::Inside) => '.',
                Ok(Mark::KeyStart) => 'K',
                Ok(Mark::KeyEnd) => 'k',
                Ok(Mark::ValueStart) => 'v',
                Ok(Mark::ValueEnd) => 'e',
                Ok(Mark::End) => 'E',
                Err(Broken) => return marks + "!",
            });
        }
        marks
    }

    #[test]
    fn keys_and_values_of_the_outermost_object_are_marked() {
        let check = |text: &str, expected: &str| assert_eq!(marks(text), expected, "{text}");
        check(r#"{}"#, ".E");
        check(r#" { "a" : "b" } "#, "...K.k...v.e.E.");
        check(r#"{"a":{"b":[1,{}]},"c":-0.5e+3}"#, ".K.k.v..........e.K.k.v......E");
        check(r#"{"a\"":"\u00e9\\","b":[]}"#, ".K...k.v........e.K.k.veE");
        check(r#"{"a":tru }"#, ".K.k.v..!");
        check(r#"{"a":01}"#, ".K.k.v!");
        check(r#"{"a":1,}"#, ".K.k.v.!");
        check("{\"a\":\"\n\"}", ".K.k.v!");
        check(r#"{"a":"\x"}"#, ".K.k.v.!");
        check(r#"{"a":[1}"#, ".K.k.v.!");
        check(r#"{"a":[,]}"#, ".K.k.v!");
        check(r#"{}}"#, ".E!");
        check("[]", "!");
    }

    #[test]
    fn what_it_takes_is_what_serde_json_takes() {
        let words = ["{", "}", "[", "]", ",", ":", "\"", "\"a\"", "1", "-", ".5", "0", "e1", "true", "nul", " ", "\\"];
        let mut random = 1_u64;
        let mut valid = 0;
        for _ in 0..200_000 {
            let mut text = String::from("{\"a\":");
            for _ in 0..(random >> 33) % 7 {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                text += words[(random >> 33) as usize % words.len()];
            }
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            text.push('}');
            let ours = marks(&text);
            let is_object = !ours.ends_with('!') && ours.contains('E');
            assert_eq!(is_object, serde_json::from_str::<serde_json::Value>(&text).is_ok(), "{text}");
            valid += usize::from(is_object);
        }
        assert!(1000 < valid, "{valid}");
    }
}
