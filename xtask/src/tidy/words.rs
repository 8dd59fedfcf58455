//! One word, one meaning: words that GLOSSARY.md replaces, and marks of unfinished work.
//!
//! Checks only what text can decide: names of our own in code and a few markers. Words with an honest
//! second meaning (`index`, `offset`, `chunk`, `query`, `shard`) are left to review.

use super::Finding;
use super::scan;
use super::tree::{Source, Tree};

/// Where a word is looked for.
enum Place {
    /// Anywhere in code.
    Code,
    /// As a word of a comment.
    Comment,
    /// As a whole part of a name, in any case: `block_table` also means `FirstBlockTables`.
    Name,
}

struct Rule {
    place: Place,
    word: &'static str,
    instead: &'static str,
    /// Whether the rule holds on this line (from 0) of this file.
    holds: fn(&Source, usize) -> bool,
}

const RULES: &[Rule] = &[
    rule(Place::Code, "todo!", "finish it, or leave it out and open an issue", always),
    rule(Place::Code, "unimplemented!", "finish it, or leave it out and open an issue", always),
    rule(Place::Code, "dbg!", "remove it", always),
    rule(Place::Code, "#[ignore", "a test runs, or is not there; skip at run time with a printed reason", always),
    rule(Place::Code, "static mut", "no process-wide mutable state: pass it", always),
    rule(Place::Code, "env::var", "only cli reads the environment: take a resolved value", below_cli),
    rule(Place::Code, "env::args", "only cli reads flags: take a resolved value", below_cli),
    rule(Place::Comment, "TODO", "open an issue, or do it", always),
    rule(Place::Comment, "FIXME", "open an issue, or do it", always),
    rule(Place::Comment, "XXX", "open an issue, or do it", always),
    rule(Place::Comment, "HACK", "say why it must be so", always),
    rule(Place::Name, "landmark", "summary (landmark is ShadowKV's word)", outside_shadowkv),
    rule(Place::Name, "representative", "summary", always),
    rule(Place::Name, "cluster", "partition (cluster is RetroInfer's word)", outside_clustering),
    rule(Place::Name, "block_table", "row_table (a block is a CUDA thread block)", always),
    rule(Place::Name, "block_id", "a page or a row (a block is a CUDA thread block)", always),
    rule(Place::Name, "block_manager", "rows (a block is a CUDA thread block)", always),
    rule(Place::Name, "kv_block", "page or row (a block is a CUDA thread block)", always),
    rule(Place::Name, "token_offset", "position", always),
    rule(Place::Name, "position_offset", "position", always),
    rule(Place::Name, "spill", "offload", always),
    rule(Place::Name, "swap_in", "resume (a sequence) or retrieve (a page)", always),
    rule(Place::Name, "swap_out", "preempt (a sequence) or offload (a row)", always),
    rule(Place::Name, "timestamp", "age bucket", |source, _| source.crate_name() == "kv"),
    rule(Place::Name, "iteration", "step", |source, _| source.crate_name() == "engine"),
    rule(Place::Name, "tick", "step", |source, _| source.crate_name() == "engine"),
    rule(Place::Name, "kill", "abort", |source, _| source.crate_name() == "engine"),
    rule(Place::Name, "evict_sequence", "preempt", always),
];

const fn rule(place: Place, word: &'static str, instead: &'static str, holds: fn(&Source, usize) -> bool) -> Rule {
    Rule { place, word, instead, holds }
}

fn always(_source: &Source, _line: usize) -> bool {
    true
}

fn below_cli(source: &Source, line: usize) -> bool {
    !["", "cli", "xtask"].contains(&source.crate_name()) && source.stem() != "build" && !source.is_test(line)
}

fn outside_shadowkv(source: &Source, line: usize) -> bool {
    !source.path.contains("shadowkv") && !source.lines[line].code.to_lowercase().contains("shadowkv")
}

fn outside_clustering(source: &Source, line: usize) -> bool {
    let inside = |text: &str| ["retroinfer", "kmeans"].iter().any(|name| text.to_lowercase().contains(name));
    !inside(&source.path) && !inside(&source.lines[line].code)
}

/// Applies every rule to every line of Rust and CUDA.
pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for source in ["rs", "cu", "cuh"].into_iter().flat_map(|extension| tree.with_extension(extension)) {
        for (number, line) in source.lines.iter().enumerate() {
            let names: Vec<String> = scan::names(&line.code).map(|(_, name)| scan::snake(name)).collect();
            for rule in RULES {
                let present = match rule.place {
                    Place::Code => line.code.contains(rule.word),
                    Place::Comment => scan::names(&line.comment).any(|(_, word)| word == rule.word),
                    Place::Name => names.iter().any(|name| has_part(name, rule.word)),
                };
                if present && (rule.holds)(source, number) {
                    let message = format!("`{}` is banned; instead: {}", rule.word, rule.instead);
                    findings.push(Finding::new(&source.path, number + 1, message));
                }
            }
        }
    }
    findings
}

/// Whether a snake-case name has `word`, or its plural, as whole parts.
fn has_part(name: &str, word: &str) -> bool {
    name.match_indices(word).any(|(start, _)| {
        let end = name[start + word.len()..].strip_prefix('s').unwrap_or(&name[start + word.len()..]);
        (start == 0 || name[..start].ends_with('_')) && (end.is_empty() || end.starts_with('_'))
    })
}

#[cfg(test)]
mod tests {
    use super::super::messages;
    use super::*;

    #[test]
    fn banned_words_are_found_with_their_replacement() {
        let found = messages(check, &[("crates/kv/src/rows.rs", "struct BlockTables;\n")]);
        assert_eq!(
            found,
            ["crates/kv/src/rows.rs:1: `block_table` is banned; instead: row_table (a block is a CUDA thread block)"]
        );
        for text in [
            "todo!()",
            "// TODO: later",
            "#[ignore]",
            "dbg!(1)",
            "let landmarks = 1;",
            "std::env::var(\"A\")",
            "fn spill()",
        ] {
            assert_eq!(messages(check, &[("crates/kv/src/rows.rs", text)]).len(), 1, "{text}");
        }
    }

    #[test]
    fn the_same_words_are_fine_where_they_belong() {
        for (path, text) in [
            ("crates/sparse/src/shadowkv.rs", "let landmarks = 1;"),
            ("crates/sparse/src/quest.rs", "// a landmark in a sentence, \"todo!\" in a text"),
            ("crates/sparse/src/quest.rs", "let text = \"todo! landmark\"; let landmarked = 1;"),
            ("crates/cli/src/main.rs", "std::env::var(\"A\")"),
            ("crates/model/src/kmeans.rs", "let clusters = 1;"),
            ("crates/model/src/gguf.rs", "#[cfg(test)]\nmod tests {\n    std::env::var(\"A\");\n}\n"),
        ] {
            assert_eq!(messages(check, &[(path, text)]), [""; 0], "{text}");
        }
    }
}
