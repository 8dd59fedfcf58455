//! A source that no `mod` line names is never built: remove it or name it.
//!
//! `src/a.rs` must be named by the crate's root, `src/a/b.rs` by `src/a.rs`; `#[path]` and `include!`
//! anywhere in the crate count too. Declarations that macros make are not seen.

use super::Finding;
use super::scan;
use super::tree::{Source, Tree};

/// Looks at every Rust file below a `src` folder.
pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    let dead = tree.rust().filter(|source| !is_reachable(tree, source));
    dead.map(|source| Finding::new(&source.path, 0, format!("no `mod {};` in the file above it", source.stem())))
        .collect()
}

fn is_reachable(tree: &Tree, source: &Source) -> bool {
    let Some((package, inner)) = source.path.split_once("/src/") else { return true };
    if ["lib.rs", "main.rs"].contains(&inner) || inner.starts_with("bin/") {
        return true;
    }
    let parents = match inner.rsplit_once('/') {
        Some((module, _)) => vec![format!("{package}/src/{module}.rs")],
        None => vec![format!("{package}/src/lib.rs"), format!("{package}/src/main.rs")],
    };
    let named = parents.iter().filter_map(|parent| tree.get(parent)).any(|parent| declares(parent, source.stem()));
    named || is_included(tree, package, source)
}

fn declares(parent: &Source, module: &str) -> bool {
    parent.lines.iter().any(|line| {
        let names: Vec<&str> = scan::names(&line.code).map(|(_, name)| name).collect();
        names.windows(2).any(|pair| pair == ["mod", module])
    })
}

fn is_included(tree: &Tree, package: &str, source: &Source) -> bool {
    let folder = format!("{package}/");
    let file = format!("{}.rs\"", source.stem());
    let includes = |line: &str| line.contains(&file) && (line.contains("#[path") || line.contains("include!"));
    tree.rust().filter(|other| other.path.starts_with(&folder)).any(|other| other.text.lines().any(includes))
}

#[cfg(test)]
mod tests {
    use super::super::messages;
    use super::*;

    #[test]
    fn a_file_that_nobody_names_is_found() {
        let files = [("crates/kv/src/lib.rs", "// mod rows;\nmod tables;\n"), ("crates/kv/src/rows.rs", "")];
        assert_eq!(messages(check, &files), ["crates/kv/src/rows.rs: no `mod rows;` in the file above it"]);
        let files = [("crates/kv/src/lib.rs", "mod rows;\nmod table;\n"), ("crates/kv/src/rows/table.rs", "")];
        assert_eq!(messages(check, &files).len(), 1);
    }

    #[test]
    fn named_files_are_fine() {
        let files = [
            ("crates/kv/src/lib.rs", "mod rows;\n#[path = \"odd/name.rs\"]\nmod other;\n"),
            ("crates/kv/src/rows.rs", "pub(crate) mod table;\n"),
            ("crates/kv/src/rows/table.rs", ""),
            ("crates/kv/src/odd/name.rs", ""),
            ("crates/kv/tests/rows.rs", ""),
            ("xtask/src/main.rs", "mod ci;\n"),
            ("xtask/src/ci.rs", ""),
        ];
        assert_eq!(messages(check, &files), [""; 0]);
    }
}
