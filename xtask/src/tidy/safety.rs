//! `unsafe` says why it is sound.
//!
//! A block, an `unsafe impl` and an `unsafe extern` block have a `SAFETY:` comment on the line, in the
//! three lines above, at the end of a comment that reaches there, or above the statement they are in.
//! An `unsafe fn` has a `# Safety` section or a `SAFETY:` comment; in the `impl` of a trait, the trait's holds.
//! clippy's `undocumented_unsafe_blocks` is stricter about blocks; this check holds without clippy.

use super::Finding;
use super::scan;
use super::tree::{Source, Tree};

/// Looks at every `unsafe` of every Rust file.
pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in tree.rust() {
        for (number, line) in source.lines.iter().enumerate() {
            for (column, _) in scan::names(&line.code).filter(|(_, name)| *name == "unsafe") {
                if let Some(what) = undocumented(source, number, column + "unsafe".len()) {
                    findings.push(Finding::new(&source.path, number + 1, what));
                }
            }
        }
    }
    findings
}

/// What is missing for the `unsafe` that ends at this column.
fn undocumented(source: &Source, number: usize, column: usize) -> Option<&'static str> {
    let rest = source.lines[number].code[column..].trim_start();
    let next =
        if rest.is_empty() { source.lines.get(number + 1).map_or("", |line| line.code.trim_start()) } else { rest };
    let word = scan::names(next).next().map_or("", |(_, name)| name);
    let is_function = word == "fn" || word == "extern" && scan::names(next).any(|(_, name)| name == "fn");
    if is_function {
        let is_pointer = next.replace(' ', "").contains("fn(");
        let inherits = is_pointer || in_trait_impl(source, number);
        let documented = inherits || above_item(source, number, &["# Safety", "SAFETY:"]);
        return (!documented).then_some("`unsafe fn` without a `# Safety` section");
    }
    if next.starts_with('{') || word == "impl" || word == "extern" {
        return (!above_statement(source, number)).then_some("`unsafe` without a `SAFETY:` comment");
    }
    None
}

/// A mark in the doc comments and attributes directly above.
fn above_item(source: &Source, number: usize, marks: &[&str]) -> bool {
    let has_mark = |line: usize| marks.iter().any(|mark| source.lines[line].comment.contains(mark));
    let belongs = |line: usize| {
        let code = source.lines[line].code.trim();
        code.starts_with("#[") || code.is_empty() && !source.lines[line].comment.trim().is_empty()
    };
    has_mark(number) || (0..number).rev().take_while(|line| belongs(*line)).any(has_mark)
}

/// Whether the item that encloses this line, by indentation, implements a trait.
fn in_trait_impl(source: &Source, number: usize) -> bool {
    let indent = |line: usize| source.lines[line].code.len() - source.lines[line].code.trim_start().len();
    let opens = |line: &usize| {
        let starts = ["impl", "unsafe impl", "trait", "unsafe trait", "pub", "mod", "fn", "extern", "unsafe extern"];
        let code = source.lines[*line].code.trim_start();
        indent(*line) < indent(number) && starts.iter().any(|start| code.starts_with(start))
    };
    (0..number).rev().find(opens).is_some_and(|line| {
        let code = source.lines[line].code.trim_start();
        code.trim_start_matches("unsafe ").starts_with("impl") && code.contains(" for ")
    })
}

/// `SAFETY:` on the line, within three lines above, or above the statement.
fn above_statement(source: &Source, number: usize) -> bool {
    let has_mark = |line: usize| source.lines[line].comment.contains("SAFETY:");
    let is_comment =
        |line: usize| source.lines[line].code.trim().is_empty() && !source.lines[line].comment.trim().is_empty();
    let continues = |line: usize| {
        let code = source.lines[line].code.trim();
        is_comment(line) || !code.is_empty() && !code.ends_with([';', '{', '}'])
    };
    let near = (number.saturating_sub(3)..=number).any(has_mark);
    let mut first_near = number.saturating_sub(3);
    while 0 < first_near && is_comment(first_near) && is_comment(first_near - 1) {
        first_near -= 1;
    }
    near || (first_near..number).any(has_mark) || (0..number).rev().take_while(|line| continues(*line)).any(has_mark)
}

#[cfg(test)]
mod tests {
    use super::super::messages;
    use super::*;

    #[test]
    fn silent_unsafe_is_found() {
        for text in [
            "fn a() {\n    unsafe { b() }\n}",
            "unsafe impl Send for A {}",
            "/// Does it.\npub unsafe fn a() {}",
            "unsafe extern \"C\" {\n}",
            "impl A {\n    unsafe fn a() {}\n}",
            "// SAFETY: of another\nlet a = unsafe { b() };\nc();\nd();\ne();\nunsafe { f() }",
        ] {
            assert_eq!(messages(check, &[("crates/kv/src/a.rs", text)]).len(), 1, "{text}");
        }
    }

    #[test]
    fn reasons_are_seen() {
        for text in [
            "// SAFETY: b is sound.\nunsafe { b() }",
            "unsafe { b() } // SAFETY: b is sound.",
            "// SAFETY: one\n// two\n// three\n// four\n// five\nlet a = unsafe { b() };",
            "// SAFETY: b is sound.\nlet a = c(\n    d,\n    e,\n    f,\n    unsafe { b() },\n);",
            "/// # Safety\n/// The caller knows.\n#[inline]\npub unsafe fn a() {}",
            "impl A for B {\n    fn c() {}\n\n    #[inline]\n    unsafe fn a() {}\n}",
            "type A = unsafe fn(u8);\n#[unsafe(no_mangle)]\nfn a() {}",
            "// unsafe { in a comment }\nlet a = \"unsafe { b }\";",
        ] {
            assert_eq!(messages(check, &[("crates/kv/src/a.rs", text)]), [""; 0], "{text}");
        }
    }
}
