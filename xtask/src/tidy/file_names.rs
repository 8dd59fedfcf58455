//! One file, one noun or one role: names that say nothing are not names.

use super::Finding;
use super::tree::Tree;

const NAMELESS: &[&str] = &["util", "utils", "common", "misc", "helper", "helpers"];

/// Looks at every file and folder of the crates, xtask, tools, benches and fuzz targets.
pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    let code = ["crates/", "xtask/", "tools/", "benches/", "fuzz/"];
    tree.paths().filter(|path| code.iter().any(|folder| path.starts_with(folder))).filter_map(check_path).collect()
}

fn check_path(path: &str) -> Option<Finding> {
    if path.ends_with("/mod.rs") {
        return Some(Finding::new(path, 0, "a module `foo` lies in foo.rs beside foo/, never in foo/mod.rs"));
    }
    let stem = |name: &str| name.split('.').next().unwrap_or("").to_owned();
    let nameless = path.split('/').map(stem).find(|name| NAMELESS.contains(&name.as_str()))?;
    Some(Finding::new(path, 0, format!("`{nameless}` is no noun: name the file after what it holds")))
}

#[cfg(test)]
mod tests {
    use super::super::messages;
    use super::*;

    #[test]
    fn names_that_say_nothing_are_found() {
        for path in
            ["crates/kv/src/utils.rs", "crates/kv/src/common/rows.rs", "tools/helpers.py", "crates/kv/src/a/mod.rs"]
        {
            assert_eq!(messages(check, &[(path, "")]).len(), 1, "{path}");
        }
    }

    #[test]
    fn nouns_are_fine() {
        let files = [("crates/kv/src/rows.rs", ""), ("crates/kv/src/commonplace.rs", ""), ("docs/misc.md", "")];
        assert_eq!(messages(check, &files), [""; 0]);
    }
}
