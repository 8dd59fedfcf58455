//! Every file says what it is for, and every public item what it is.
//!
//! rustc's `missing_docs` is the full check for libraries; this one also covers module headers, and
//! in binaries (cli, xtask) the `pub(crate)` items that rustc does not ask about. Fields, variants
//! and items that macros make are left to rustc.

use super::Finding;
use super::scan;
use super::tree::{Source, Tree};

const ITEMS: &[&str] = &["fn", "struct", "enum", "union", "trait", "const", "static", "type"];
const QUALIFIERS: &[&str] = &["async", "unsafe", "extern", "C"];

/// Looks at every Rust file.
pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    tree.rust().flat_map(check_source).collect()
}

fn check_source(source: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    if !source.text.trim_start().starts_with("//!") {
        findings.push(Finding::new(&source.path, 1, "starts without a `//!` header: what is this file for?"));
    }
    let mut documented = false;
    let mut attribute_brackets = 0i32;
    for (number, line) in source.lines.iter().enumerate() {
        let code = line.code.trim();
        let comment = line.comment.trim();
        if 0 < attribute_brackets || code.starts_with("#[") {
            attribute_brackets += brackets(code);
            documented |= code.starts_with("#[doc");
            continue;
        }
        if code.is_empty() {
            documented |= comment.starts_with("///") || comment.starts_with("/**");
            continue;
        }
        if let Some(name) = public_item(source, code)
            && !documented
        {
            findings.push(Finding::new(&source.path, number + 1, format!("public `{name}` has no doc comment")));
        }
        documented = false;
    }
    findings
}

fn brackets(code: &str) -> i32 {
    code.chars().map(|char| i32::from(char == '[') - i32::from(char == ']')).sum()
}

/// The name of the public item that this line of code declares.
fn public_item<'a>(source: &Source, code: &'a str) -> Option<&'a str> {
    let rest = match code.strip_prefix("pub(crate) ") {
        Some(rest) if ["cli", "xtask"].contains(&source.crate_name()) => rest,
        Some(_) => return None,
        None => code.strip_prefix("pub ")?,
    };
    let mut words = scan::names(rest).map(|(_, name)| name).peekable();
    while words.next_if(|word| QUALIFIERS.contains(word)).is_some() {}
    let kind = words.next().filter(|word| ITEMS.contains(word))?;
    if kind == "const" {
        while words.next_if(|word| QUALIFIERS.contains(word) || *word == "fn").is_some() {}
    }
    words.next()
}

#[cfg(test)]
mod tests {
    use super::super::messages;
    use super::*;

    #[test]
    fn silent_items_and_files_are_found() {
        let found = messages(check, &[("crates/kv/src/a.rs", "//! Rows.\n\n#[inline]\npub const fn rows() {}\n")]);
        assert_eq!(found, ["crates/kv/src/a.rs:4: public `rows` has no doc comment"]);
        assert_eq!(messages(check, &[("crates/kv/src/a.rs", "fn a() {}\n")]).len(), 1);
        assert_eq!(messages(check, &[("crates/cli/src/a.rs", "//! A.\npub(crate) struct A;\n")]).len(), 1);
        assert_eq!(
            messages(check, &[("crates/kv/src/a.rs", "//! A.\n/// A.\npub enum A {}\npub unsafe fn b() {}\n")]).len(),
            1
        );
    }

    #[test]
    fn documented_and_private_items_are_fine() {
        let text = "//! A.\n\n/// One.\n#[derive(\n    Debug,\n)]\npub struct A {\n    pub field: u8,\n}\n\n\
                    pub use b::C;\npub mod d;\npub(crate) fn e() {}\nfn f() {}\n";
        assert_eq!(messages(check, &[("crates/kv/src/a.rs", text)]), [""; 0]);
    }
}
