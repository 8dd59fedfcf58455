//! Lines, files and functions have a longest length; those that are over it may only shrink.
//!
//! `xtask/ratchet.txt` lists the exceptions: `path length` for a file, `path::function length` for a
//! function, with today's length. An entry that is larger than needed, or not needed, is an error, so
//! that what became shorter stays shorter.

use std::collections::BTreeMap;

use super::Finding;
use super::functions::functions;
use super::tree::{Source, Tree};

const RATCHET: &str = "xtask/ratchet.txt";
const LINE_CHARS_MAX: usize = 120;
const FILE_LINES_MAX: usize = 700;
const FUNCTION_LINES_MAX: usize = 100;
/// The step and the layer read as a sentence.
const SENTENCE_LINES_MAX: usize = 40;
const SENTENCES: &[&str] = &["step", "layer"];

/// Measures all sources and compares them with the ratchet.
pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings: Vec<Finding> = ["rs", "cu", "cuh", "py"]
        .into_iter()
        .flat_map(|extension| tree.with_extension(extension))
        .flat_map(long_lines)
        .collect();
    let measured = tree.rust().flat_map(measure).collect();
    findings.extend(compare(&measured, tree.get(RATCHET).map_or("", |file| &file.text)));
    findings
}

/// The name of a file or function in the ratchet, with its length and its limit.
type Measured = BTreeMap<String, Length>;

struct Length {
    lines: usize,
    limit: usize,
    at: Finding,
}

fn long_lines(source: &Source) -> Vec<Finding> {
    let is_long = |line: &str| LINE_CHARS_MAX < line.chars().count() && !line.contains("://");
    let long = source.text.lines().enumerate().filter(|(_, line)| is_long(line));
    long.map(|(number, line)| {
        let message = format!("line of {} characters; at most {LINE_CHARS_MAX}", line.chars().count());
        Finding::new(&source.path, number + 1, message)
    })
    .collect()
}

fn measure(source: &Source) -> Vec<(String, Length)> {
    let path = &source.path;
    let limit = if SENTENCES.contains(&source.stem()) { SENTENCE_LINES_MAX } else { FUNCTION_LINES_MAX };
    let lines = source.lines.len();
    let file = Length { lines, limit: FILE_LINES_MAX, at: Finding::new(path, 0, "file") };
    let mut measured = BTreeMap::from([(path.clone(), file)]);
    for function in functions(source) {
        let at = Finding::new(path, function.first + 1, format!("function {}", function.name));
        let length = Length { lines: function.lines(), limit, at };
        let slot = measured.entry(format!("{path}::{}", function.name));
        let longest = slot.or_insert(Length { lines: 0, limit, at: Finding::new(path, 0, "") });
        if longest.lines < length.lines {
            *longest = length;
        }
    }
    measured.into_iter().collect()
}

fn compare(measured: &Measured, ratchet: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut allowed = BTreeMap::new();
    for (number, entry) in ratchet.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
        let parsed = entry.rsplit_once(' ').and_then(|(name, lines)| Some((name.trim(), lines.parse::<usize>().ok()?)));
        let Some((name, lines)) = parsed else {
            findings.push(Finding::new(RATCHET, number + 1, "an entry is `path::function length`"));
            continue;
        };
        allowed.insert(name, lines);
        let message = match measured.get(name) {
            None => format!("{name} is gone: remove the entry"),
            Some(length) if length.lines <= length.limit => format!("{name} is within the limit: remove the entry"),
            Some(length) if length.lines < lines => {
                format!("{name} is shorter now: lower the entry to {}", length.lines)
            }
            Some(_) => continue,
        };
        findings.push(Finding::new(RATCHET, number + 1, message));
    }
    for (name, length) in measured {
        let limit = allowed.get(name.as_str()).copied().unwrap_or(0).max(length.limit);
        if limit < length.lines {
            let message = format!("{} of {} lines; at most {limit}", length.at.message, length.lines);
            findings.push(Finding::new(&length.at.path, length.at.line, message));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::messages;
    use super::*;

    const PATH: &str = "crates/kv/src/rows.rs";

    fn function(lines: usize) -> String {
        format!("fn long() {{\n{}}}\n", "    a();\n".repeat(lines - 2))
    }

    #[test]
    fn what_is_too_long_is_found() {
        assert_eq!(messages(check, &[(PATH, &format!("// {}\n", "x".repeat(118)))]).len(), 1);
        assert_eq!(messages(check, &[(PATH, &"\n".repeat(701))]), [format!("{PATH}: file of 701 lines; at most 700")]);
        assert_eq!(
            messages(check, &[(PATH, &function(101))]),
            [format!("{PATH}:1: function long of 101 lines; at most 100")]
        );
        assert_eq!(messages(check, &[("crates/engine/src/step.rs", &function(41))]).len(), 1);
        assert_eq!(messages(check, &[(PATH, &function(103)), (RATCHET, &format!("{PATH}::long 102\n"))]).len(), 1);
    }

    #[test]
    fn the_ratchet_only_turns_one_way() {
        for (lines, entry, said) in [
            (101, "long 102", "is shorter now: lower the entry to 101"),
            (100, "long 102", "is within the limit: remove the entry"),
            (9, "short 102", "is gone: remove the entry"),
        ] {
            let found = messages(check, &[(PATH, &function(lines)), (RATCHET, &format!("{PATH}::{entry}\n"))]);
            assert!(found.len() <= 2 && found[0].ends_with(said), "{found:?}");
        }
    }

    #[test]
    fn what_fits_or_is_listed_is_fine() {
        let url = format!("// https://{}\n", "x".repeat(118));
        for text in [function(100), url, "\n".repeat(700)] {
            assert_eq!(messages(check, &[(PATH, &text)]), [""; 0]);
        }
        let ratchet = format!("# path::function length\n{PATH}::long 102\n");
        assert_eq!(messages(check, &[(PATH, &function(102)), (RATCHET, &ratchet)]), [""; 0]);
    }
}
