//! Finds functions and their extents in scanned Rust, by counting brackets.
//!
//! Misses functions that macros make; a brace in a const generic argument of a signature ends it early.

use super::tree::Source;

/// A function with a body; lines from 0, `last` included.
#[derive(Debug, PartialEq)]
pub(crate) struct Function {
    /// The name alone: methods of several types may share it.
    pub(crate) name: String,
    /// The line of `fn`.
    pub(crate) first: usize,
    /// The line of the closing brace.
    pub(crate) last: usize,
}

impl Function {
    /// Lines from `fn` to the closing brace.
    pub(crate) fn lines(&self) -> usize {
        self.last - self.first + 1
    }
}

/// All functions with a body, nested ones too, in order.
pub(crate) fn functions(source: &Source) -> Vec<Function> {
    let mut found = Vec::new();
    for (first, line) in source.lines.iter().enumerate() {
        let names: Vec<(usize, &str)> = super::scan::names(&line.code).collect();
        for pair in names.windows(2) {
            let (column, name) = pair[1];
            let adjacent = line.code[pair[0].0 + 2..column].trim().is_empty();
            if pair[0].1 == "fn"
                && adjacent
                && let Some(last) = body_end(source, first, column)
            {
                found.push(Function { name: name.to_owned(), first, last });
            }
        }
    }
    found
}

/// The line on which the body closes, for a signature that starts here; `None` if it has no body.
fn body_end(source: &Source, first: usize, column: usize) -> Option<usize> {
    let (mut brackets, mut braces) = (0, 0);
    for (at, line) in source.lines.iter().enumerate().skip(first) {
        let code = if at == first { &line.code[column..] } else { &line.code };
        for char in code.chars() {
            match char {
                '(' | '[' => brackets += 1,
                ')' | ']' => brackets -= 1,
                ';' if braces == 0 && brackets == 0 => return None,
                '{' => braces += 1,
                '}' if braces == 1 => return Some(at),
                '}' => braces -= 1,
                _ => {}
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::tree::Tree;
    use super::*;

    #[test]
    fn bodies_are_measured_and_declarations_are_not() {
        let text = "trait A { fn a(x: [u8; 2]); }\nfn b(x: [u8; 2]) -> fn(u8) {\n    fn c() {}\n    '{';\n}\n";
        let tree = Tree::of(&[("crates/kv/src/a.rs", text)]);
        let found = functions(tree.get("crates/kv/src/a.rs").unwrap());
        let shown: Vec<_> = found.iter().map(|one| (one.name.as_str(), one.lines())).collect();
        assert_eq!(shown, [("b", 4), ("c", 1)]);
    }
}
