//! The repository as the checks see it: every path, and the text of sources and documents.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::scan::{self, Line};

/// Folders of the root that hold the project; anything else there is somebody's own.
const FOLDERS: &[&str] = &["crates", "xtask", "tools", "docs", "benches", "fuzz", "models", ".ci", ".cargo"];

/// A text file; sources are scanned into code and comments once, for all checks.
pub(crate) struct Source {
    /// Path from the repository's root, with `/`.
    pub(crate) path: String,
    /// The whole text.
    pub(crate) text: String,
    /// Lines of a `.rs`, `.cu` or `.cuh` file, split into code and comment; empty for others.
    pub(crate) lines: Vec<Line>,
    /// May be run: the executable bit, where the system has one.
    pub(crate) executable: bool,
    /// First line (from 0) of the trailing `#[cfg(test)]` module; the line count if there is none.
    tests_from: usize,
}

/// All files by path; those that are not text are there by name only.
pub(crate) struct Tree {
    files: BTreeMap<String, Option<Source>>,
}

impl Tree {
    /// Reads the project's folders and the files of the root.
    pub(crate) fn read(root: &Path) -> Result<Tree> {
        let mut tree = Tree { files: BTreeMap::new() };
        for entry in fs::read_dir(root).with_context(|| format!("cannot read {}", root.display()))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if entry.file_type()?.is_file() {
                tree.read_file(&entry.path(), name)?;
            } else if FOLDERS.contains(&name.as_str()) {
                tree.read_folder(&entry.path(), &name)?;
            }
        }
        Ok(tree)
    }

    fn read_folder(&mut self, folder: &Path, path: &str) -> Result<()> {
        for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = format!("{path}/{name}");
            let skipped = ["target", "__pycache__"].contains(&name.as_str()) || name.starts_with('.');
            if entry.file_type()?.is_file() {
                self.read_file(&entry.path(), path)?;
            } else if !skipped {
                self.read_folder(&entry.path(), &path)?;
            }
        }
        Ok(())
    }

    fn read_file(&mut self, file: &Path, path: String) -> Result<()> {
        let source = if is_text(&path) {
            let text = fs::read_to_string(file).with_context(|| format!("cannot read {path} as text"))?;
            Some(Source::new(&path, text, is_executable(file)?))
        } else {
            None
        };
        self.files.insert(path, source);
        Ok(())
    }

    /// A made-up tree for the checks' tests.
    #[cfg(test)]
    pub(crate) fn of(files: &[(&str, &str)]) -> Tree {
        let source = |path: &str, text: &str| Source::new(path, text.to_owned(), true);
        let files = files.iter().map(|(path, text)| ((*path).to_owned(), Some(source(path, text))));
        Tree { files: files.collect() }
    }

    /// Every path, text or not, ascending.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &str> {
        self.files.keys().map(String::as_str)
    }

    /// The text files with this extension, ascending by path.
    pub(crate) fn with_extension<'a>(&'a self, wanted: &'a str) -> impl Iterator<Item = &'a Source> {
        self.files.values().flatten().filter(move |source| extension(&source.path) == wanted)
    }

    /// The Rust files.
    pub(crate) fn rust(&self) -> impl Iterator<Item = &Source> {
        self.with_extension("rs")
    }

    /// One text file.
    pub(crate) fn get(&self, path: &str) -> Option<&Source> {
        self.files.get(path)?.as_ref()
    }

    /// Whether a file or a folder of this path exists.
    pub(crate) fn exists(&self, path: &str) -> bool {
        let folder = format!("{path}/");
        self.files.contains_key(path) || self.files.keys().any(|file| file.starts_with(&folder))
    }
}

impl Source {
    fn new(path: &str, text: String, executable: bool) -> Source {
        let scanned = ["rs", "cu", "cuh"].contains(&extension(path));
        let lines = if scanned { scan::lines(&text) } else { Vec::new() };
        let opens_tests = |pair: &[Line]| {
            pair[0].code.trim() == "#[cfg(test)]"
                && pair[1].code.trim().starts_with("mod ")
                && pair[1].code.contains('{')
        };
        let tests_from = lines.windows(2).position(opens_tests).unwrap_or(lines.len());
        Source { path: path.to_owned(), text, lines, executable, tests_from }
    }

    /// The crate's folder name (`kv`, `xtask`), or "" outside of crates.
    pub(crate) fn crate_name(&self) -> &str {
        let mut parts = self.path.split('/');
        match parts.next() {
            Some("crates") => parts.next().unwrap_or(""),
            Some("xtask") => "xtask",
            _ => "",
        }
    }

    /// The file's name without its extension.
    pub(crate) fn stem(&self) -> &str {
        let name = self.path.rsplit('/').next().unwrap_or("");
        name.rsplit_once('.').map_or(name, |(stem, _)| stem)
    }

    /// Whether a folder of the path has this name.
    pub(crate) fn is_under(&self, folder: &str) -> bool {
        self.path.rsplit_once('/').is_some_and(|(folders, _)| folders.split('/').any(|name| name == folder))
    }

    /// Whether the line (from 0) is only built for tests, fuzzing or benches.
    pub(crate) fn is_test(&self, line: usize) -> bool {
        let whole_file = ["tests", "benches", "fuzz"].iter().any(|folder| self.is_under(folder))
            || self.crate_name() == "testing"
            || ["_fuzz", "_tests"].iter().any(|end| self.stem().ends_with(end))
            || self.stem() == "tests";
        whole_file || self.tests_from <= line
    }
}

/// Sources and documents; data of any kind is known by name only.
fn is_text(path: &str) -> bool {
    ["rs", "cu", "cuh", "py", "md", "toml"].contains(&extension(path))
        || [".ci/run", "xtask/ratchet.txt"].contains(&path)
}

fn extension(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or("");
    match name.rsplit_once('.') {
        Some((stem, extension)) if !stem.is_empty() => extension,
        _ => "",
    }
}

#[cfg(unix)]
fn is_executable(file: &Path) -> Result<bool> {
    use std::os::unix::fs::PermissionsExt;
    Ok(fs::metadata(file)?.permissions().mode() & 0o111 != 0)
}

#[cfg(not(unix))]
fn is_executable(_file: &Path) -> Result<bool> {
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_known_with_their_folders() {
        let tree = Tree::of(&[("crates/kv/src/rows.rs", ""), ("README.md", "")]);
        assert!(tree.exists("crates/kv/src/rows.rs") && tree.exists("crates/kv") && tree.exists("README.md"));
        assert!(!tree.exists("crates/k") && !tree.exists("rows.rs"));
        assert_eq!(tree.rust().map(|source| source.crate_name()).collect::<Vec<_>>(), ["kv"]);
    }

    #[test]
    fn the_trailing_test_module_is_test_code() {
        let tree = Tree::of(&[("crates/kv/src/rows.rs", "fn f() {}\n#[cfg(test)]\nmod tests {\n}\n")]);
        let source = tree.get("crates/kv/src/rows.rs").unwrap();
        assert!(!source.is_test(0) && source.is_test(1) && source.is_test(2));
        assert!(Tree::of(&[("crates/kv/tests/a.rs", "")]).rust().all(|source| source.is_test(0)));
    }
}
