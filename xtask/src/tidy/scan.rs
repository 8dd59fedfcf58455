//! Splits Rust (and CUDA) text into code and comments, line by line.
//!
//! In `code`, comments and the insides of string literals are blanks, so that a word in a sentence
//! is never taken for code; in `comment`, everything but comments is. Columns stay where they were.

/// One line of a source, seen twice.
#[derive(Debug, Default)]
pub(crate) struct Line {
    /// The line without comments and without the insides of literals.
    pub(crate) code: String,
    /// The line's comment, markers included.
    pub(crate) comment: String,
}

#[derive(Clone, Copy, PartialEq)]
enum State {
    Code,
    LineComment,
    /// Block comments nest.
    BlockComment(usize),
    Text,
    /// A raw string ends at a quote and this many `#`.
    RawText(usize),
}

/// Scans a whole file.
pub(crate) fn lines(text: &str) -> Vec<Line> {
    let chars: Vec<char> = text.chars().collect();
    let mut lines = vec![Line::default()];
    let mut state = State::Code;
    let mut at = 0;
    while at < chars.len() {
        if chars[at] == '\n' {
            lines.push(Line::default());
            if state == State::LineComment {
                state = State::Code;
            }
            at += 1;
            continue;
        }
        let (taken, next) = advance(&chars, at, state);
        let line = lines.last_mut().expect("there is always a line");
        for place in at..at + taken {
            let inside = state == State::Code && chars[at] == '\'' && at < place && place + 1 < at + taken;
            let (code, comment) = if inside { (' ', ' ') } else { split(chars[place], state, next) };
            line.code.push(code);
            line.comment.push(comment);
        }
        at += taken;
        state = next;
    }
    if text.ends_with('\n') {
        lines.pop();
    }
    lines
}

/// Which of the two views keeps a character that was read from one state into the next.
fn split(char: char, state: State, next: State) -> (char, char) {
    let is_comment = |state| matches!(state, State::LineComment | State::BlockComment(_));
    match (state, next) {
        (state, next) if is_comment(state) || is_comment(next) => (' ', char),
        (State::Code, _) | (_, State::Code) => (char, ' '),
        _ => (' ', ' '),
    }
}

/// How many characters belong together at `at` (never over a line's end), and the state after them.
fn advance(chars: &[char], at: usize, state: State) -> (usize, State) {
    let next = |distance: usize| chars.get(at + distance).copied().unwrap_or('\n');
    match state {
        State::LineComment => (1, state),
        State::BlockComment(depth) => match (chars[at], next(1)) {
            ('*', '/') if depth == 1 => (2, State::Code),
            ('*', '/') => (2, State::BlockComment(depth - 1)),
            ('/', '*') => (2, State::BlockComment(depth + 1)),
            _ => (1, state),
        },
        State::Text => match chars[at] {
            '\\' if next(1) != '\n' => (2, state),
            '"' => (1, State::Code),
            _ => (1, state),
        },
        State::RawText(hashes) => {
            let closes = chars[at] == '"' && (1..=hashes).all(|distance| next(distance) == '#');
            if closes { (1 + hashes, State::Code) } else { (1, state) }
        }
        State::Code => match (chars[at], next(1)) {
            ('/', '/') => (2, State::LineComment),
            ('/', '*') => (2, State::BlockComment(1)),
            ('"', _) => (1, State::Text),
            ('r', '"' | '#') if !is_name(chars, at) => raw_text(chars, at),
            ('\'', _) => (character(chars, at), State::Code),
            _ => (1, State::Code),
        },
    }
}

/// Whether the character before `at` belongs to a name, `b` and `c` of `br"` and `cr"` aside.
fn is_name(chars: &[char], at: usize) -> bool {
    let before = |distance: usize| at.checked_sub(distance).map_or(' ', |place| chars[place]);
    let word = |char: char| char.is_alphanumeric() || char == '_';
    if matches!(before(1), 'b' | 'c') { word(before(2)) } else { word(before(1)) }
}

/// `r"`, `r#"` and so on; `r#name` is a name.
fn raw_text(chars: &[char], at: usize) -> (usize, State) {
    let hashes = chars[at + 1..].iter().take_while(|char| **char == '#').count();
    match chars.get(at + 1 + hashes) {
        Some('"') => (2 + hashes, State::RawText(hashes)),
        _ => (1, State::Code),
    }
}

/// Length of the character literal at `at`, or 1 for the quote of a lifetime.
fn character(chars: &[char], at: usize) -> usize {
    let get = |distance: usize| chars.get(at + distance).copied().unwrap_or('\n');
    if get(1) == '\\' {
        let end = (3..12).find(|distance| get(*distance) == '\'');
        return end.map_or(1, |distance| distance + 1);
    }
    if get(1) != '\'' && get(1) != '\n' && get(2) == '\'' { 3 } else { 1 }
}

/// The names in a line of code, with the byte column at which each starts.
pub(crate) fn names(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_word = |char: char| char.is_alphanumeric() || char == '_';
    let mut rest = code;
    std::iter::from_fn(move || {
        let start = rest.find(is_word)?;
        let length = rest[start..].find(|char| !is_word(char)).unwrap_or(rest.len() - start);
        let column = code.len() - rest.len() + start;
        let name = &rest[start..start + length];
        rest = &rest[start + length..];
        Some((column, name))
    })
}

/// A name in snake case: `BlockTable` and `BLOCK_TABLE` are `block_table`.
pub(crate) fn snake(name: &str) -> String {
    let mut out = String::new();
    let mut before_lower = false;
    for char in name.chars() {
        if char.is_uppercase() && before_lower {
            out.push('_');
        }
        before_lower = char.is_lowercase() || char.is_numeric();
        out.extend(char.to_lowercase());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(text: &str) -> String {
        lines(text).iter().map(|line| line.code.trim_end().to_owned()).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn comments_and_literals_are_no_code() {
        assert_eq!(code("a // b\nc"), "a\nc");
        assert_eq!(code("a /* b /* c */ d */ e"), "a                   e");
        assert_eq!(code(r#"f("x // y", z)"#), r#"f("      ", z)"#);
        assert_eq!(code(r#"f("\"{", z)"#), r#"f("   ", z)"#);
        assert_eq!(code("f(r#\"\"{\"#, br\"{\")"), "f(r#\"  \"#, br\" \")");
        assert_eq!(code("let c = '{'; fn f<'a>(x: &'a str) {"), "let c = ' '; fn f<'a>(x: &'a str) {");
        assert_eq!(code("'\"' + \"{\" + '\\''"), "' ' + \" \" + '  '");
        assert_eq!(lines("a // b").first().unwrap().comment.trim(), "// b");
        assert_eq!(lines("a\nb\n").len(), 2);
    }

    #[test]
    fn names_have_columns_and_snake_case() {
        assert_eq!(names("let a_b = C2.d;").collect::<Vec<_>>(), [(0, "let"), (4, "a_b"), (10, "C2"), (13, "d")]);
        assert_eq!(snake("BlockTable"), "block_table");
        assert_eq!(snake("BLOCK_TABLE"), "block_table");
        assert_eq!(snake("row_table"), "row_table");
    }
}
