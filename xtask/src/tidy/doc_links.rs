//! Documents do not point at what is not there.
//!
//! In every Markdown file: relative link targets, and paths in backticks that look like the
//! repository's, must exist. A path may be given from the root, from `crates/` or from the document.
//! Placeholders (`<op>`, `*`, `...`) and fenced code are skipped; anchors are not followed.

use super::Finding;
use super::tree::{Source, Tree};

const EXTENSIONS: &[&str] = &[".rs", ".cu", ".cuh", ".md", ".toml", ".py", ".json", ".jsonl", ".txt", ".csv", ".svg"];

/// Looks at every Markdown file.
pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    tree.with_extension("md").flat_map(|document| check_document(tree, document)).collect()
}

fn check_document(tree: &Tree, document: &Source) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (number, line) in outside_fences(&document.text) {
        let links = links(line).filter(|target| !is_elsewhere(target));
        let dead_links = links.filter(|target| !exists_from_document(tree, document, target));
        findings.extend(
            dead_links
                .map(|target| format!("link to `{target}`, which does not exist"))
                .map(|message| (number, message)),
        );
        let paths = code_spans(line).filter(|span| is_repository_path(tree, span));
        let dead_paths = paths.filter(|path| !exists(tree, document, path));
        findings.extend(
            dead_paths.map(|path| format!("names `{path}`, which does not exist")).map(|message| (number, message)),
        );
    }
    findings.into_iter().map(|(number, message)| Finding::new(&document.path, number + 1, message)).collect()
}

/// Lines, from 0, that are not inside a fenced block.
pub(crate) fn outside_fences(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut inside = false;
    text.lines().enumerate().filter(move |(_, line)| {
        let is_fence = line.trim_start().starts_with("```");
        inside ^= is_fence;
        !inside && !is_fence
    })
}

fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](").skip(1).filter_map(|rest| rest.split([')', ' ']).next())
}

/// The parts of a line that stand between single backticks.
pub(crate) fn code_spans(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

fn is_elsewhere(target: &str) -> bool {
    target.contains("://") || target.starts_with('#') || target.starts_with("mailto:")
}

/// Whether a code span is a path with a folder that is one of ours, or a file of a kind that we keep.
fn is_repository_path(tree: &Tree, span: &str) -> bool {
    let placeholder = span.contains(['<', '*', '{', ' ', '(', '$', '"']) || span.contains("..");
    let Some((folder, _)) = span.split_once('/') else { return false };
    let is_ours = folder.starts_with(|char: char| char.is_alphabetic() || char == '.') && tree.exists(folder);
    let is_file = EXTENSIONS.iter().any(|extension| span.ends_with(extension));
    !placeholder && !is_elsewhere(span) && !span.starts_with('/') && (is_ours || is_file)
}

fn exists(tree: &Tree, document: &Source, path: &str) -> bool {
    let path = path.trim_end_matches('/');
    tree.exists(path) || tree.exists(&format!("crates/{path}")) || exists_from_document(tree, document, path)
}

fn exists_from_document(tree: &Tree, document: &Source, target: &str) -> bool {
    let target = target.split('#').next().unwrap_or("").trim_end_matches('/');
    let mut folders: Vec<&str> = document.path.split('/').collect();
    folders.pop();
    for part in target.split('/') {
        match part {
            "." => {}
            ".." if folders.pop().is_none() => return false,
            ".." => {}
            name => folders.push(name),
        }
    }
    folders.is_empty() || tree.exists(&folders.join("/"))
}

#[cfg(test)]
mod tests {
    use super::super::messages;
    use super::*;

    #[test]
    fn dead_links_and_paths_are_found() {
        let found = messages(check, &[("README.md", "See [that](docs/gone.md).\n"), ("docs/a.md", "")]);
        assert_eq!(found, ["README.md:1: link to `docs/gone.md`, which does not exist"]);
        for line in ["`engine/src/gone.rs`", "`crates/engine/gone`", "[a](../README.md)", "a `docs/` b `docs/b`"] {
            let files = [("CHANGELOG.md", line), ("crates/engine/src/step.rs", ""), ("docs/a.md", "")];
            assert_eq!(messages(check, &files).len(), 1, "{line}");
        }
    }

    #[test]
    fn living_ones_and_placeholders_are_fine() {
        for line in [
            "[a](docs/a.md#part) [b](https://example.org/x.md) [c](#part) `engine/src/step.rs` `crates/engine/`",
            "`sparse/src/<name>.rs` `K/V` `tokens/s` `benches/*.json` `foo.rs` `cargo run a/b.rs` `/proc/x.txt`",
            "```\n[a](gone.md) `engine/src/gone.rs`\n```",
        ] {
            let files =
                [("README.md", line), ("crates/engine/src/step.rs", ""), ("docs/a.md", "[up](../README.md) `a.md`")];
            assert_eq!(messages(check, &files), [""; 0], "{line}");
        }
    }
}
