//! Outcomes are enums, never the largest number: `usize::MAX` and `u32::MAX` need a reason.
//!
//! Free in kernels and in tests. Elsewhere `// tidy: why` on the line, or on the one above, allows it.

use super::Finding;
use super::tree::Tree;

const SENTINELS: &[&str] = &["usize::MAX", "u32::MAX"];

/// Looks at every line of Rust.
pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in tree.rust().filter(|source| !source.is_under("kernels")) {
        for (number, line) in source.lines.iter().enumerate() {
            let justified = |line: usize| source.lines[line].comment.contains("tidy: ");
            let reason = justified(number) || 0 < number && justified(number - 1);
            let Some(sentinel) = SENTINELS.iter().find(|sentinel| line.code.contains(**sentinel)) else { continue };
            if !reason && !source.is_test(number) {
                let message = format!("`{sentinel}` as a value: use an enum, or give the reason in `// tidy: why`");
                findings.push(Finding::new(&source.path, number + 1, message));
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::messages;
    use super::*;

    #[test]
    fn a_sentinel_is_found() {
        let found = messages(check, &[("crates/kv/src/rows.rs", "let free = u32::MAX;")]);
        assert_eq!(found.len(), 1);
        assert_eq!(messages(check, &[("crates/kv/src/rows.rs", "// a note\nlet free = usize::MAX;")]).len(), 1);
    }

    #[test]
    fn reasons_kernels_and_tests_are_fine() {
        for (path, text) in [
            ("crates/kv/src/rows.rs", "let most = u32::MAX; // tidy: the widest row number"),
            ("crates/kv/src/rows.rs", "// tidy: the widest row number\nlet most = u32::MAX;"),
            ("crates/cuda/src/kernels/topk.rs", "let free = u32::MAX;"),
            ("crates/kv/tests/rows.rs", "let most = u32::MAX;"),
            ("crates/kv/src/rows.rs", "// u32::MAX\nlet most = u64::MAX;"),
        ] {
            assert_eq!(messages(check, &[(path, text)]), [""; 0], "{text}");
        }
    }
}
