//! The project's own rules, checked over the text of the repository.
//!
//! A check is one file with one `check(&Tree) -> Vec<Finding>` and its tests: a bad sample on which
//! it fires and a good one on which it is silent. Checks only read the [`Tree`]: they know no file
//! system, so the samples are strings. They scan text and need no parser; each says what it misses.

use std::fmt;

use anyhow::{Result, bail};

mod tree;

mod scan;

mod functions;

mod imports;

mod file_names;

mod words;

mod sentinels;

mod public_docs;

mod safety;

mod lengths;

mod doc_links;

mod dead_files;

mod commands;

use tree::Tree;

/// One broken rule, printed as `path:line: message`.
#[derive(Debug, PartialEq)]
pub(crate) struct Finding {
    /// Path from the repository's root.
    path: String,
    /// Line from 1; 0 where the finding is about the whole file.
    line: usize,
    /// What is wrong and what to do instead.
    message: String,
}

impl Finding {
    fn new(path: &str, line: usize, message: impl Into<String>) -> Finding {
        Finding { path: path.to_owned(), line, message: message.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(out, "{}: {}", self.path, self.message),
            line => write!(out, "{}:{line}: {}", self.path, self.message),
        }
    }
}

type Check = fn(&Tree) -> Vec<Finding>;

const CHECKS: &[Check] = &[
    imports::check,
    file_names::check,
    words::check,
    sentinels::check,
    public_docs::check,
    safety::check,
    lengths::check,
    doc_links::check,
    dead_files::check,
    commands::check,
];

/// Runs every check over the checkout and fails if there is a finding.
pub(crate) fn run(args: &[String]) -> Result<()> {
    if !args.is_empty() {
        bail!("`cargo xtask tidy` takes no arguments, got {args:?}");
    }
    let tree = Tree::read(&crate::root())?;
    let findings: Vec<Finding> = CHECKS.iter().flat_map(|check| check(&tree)).collect();
    for finding in &findings {
        eprintln!("{finding}");
    }
    match findings.len() {
        0 => Ok(()),
        count => bail!("tidy: {count} to put right"),
    }
}

/// The messages of a check over a made-up tree: what the checks' tests look at.
#[cfg(test)]
fn messages(check: Check, files: &[(&str, &str)]) -> Vec<String> {
    check(&Tree::of(files)).iter().map(Finding::to_string).collect()
}

#[cfg(test)]
mod tests {
    #[test]
    fn tidy_is_clean() {
        super::run(&[]).expect("cargo xtask tidy says what to put right");
    }
}
