//! Arrows between crates point down only: the import table of ARCHITECTURE.md is what Cargo.toml says.
//!
//! Reads the table's rows `| crate | may import |` and each crate's `[dependencies]` and
//! `[build-dependencies]`, target-specific ones too. Development dependencies are free, and the only
//! place for `testing`.

use std::collections::{BTreeMap, BTreeSet};

use super::Finding;
use super::tree::{Source, Tree};

const DOCUMENT: &str = "ARCHITECTURE.md";
const HEADER: &str = "| crate | may import |";

/// Compares every manifest with the table.
pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    let Some(table) = tree.get(DOCUMENT).and_then(|document| allowed(&document.text)) else {
        return vec![Finding::new(DOCUMENT, 0, format!("has no import table (`{HEADER}`)"))];
    };
    let names: BTreeSet<&str> = table.keys().map(String::as_str).collect();
    let mut findings = Vec::new();
    for manifest in tree.with_extension("toml").filter(|file| is_manifest(file)) {
        let name = manifest.crate_name();
        let Some(may_import) = table.get(name) else {
            findings.push(Finding::new(&manifest.path, 0, format!("crate {name} is not in the table of {DOCUMENT}")));
            continue;
        };
        for (line, import) in dependencies(&manifest.text, &names) {
            if import == "testing" {
                findings.push(Finding::new(&manifest.path, line, "testing is for [dev-dependencies] only"));
            } else if !may_import.contains(&import) {
                let message = format!("{name} may not import {import}: see the import table of {DOCUMENT}");
                findings.push(Finding::new(&manifest.path, line, message));
            }
        }
    }
    findings
}

fn is_manifest(file: &Source) -> bool {
    let depth = file.path.matches('/').count();
    file.path.ends_with("/Cargo.toml")
        && (file.path.starts_with("crates/") && depth == 2 || file.path == "xtask/Cargo.toml")
}

/// The table: each crate with the crates that it may import.
fn allowed(document: &str) -> Option<BTreeMap<String, BTreeSet<String>>> {
    let rows =
        document.lines().skip_while(|line| line.trim() != HEADER).skip(2).take_while(|line| line.starts_with('|'));
    let split = |row: &str| {
        let mut cells = row.trim_matches('|').split('|');
        let name = cells.next()?.trim().trim_matches('`').to_owned();
        let imports = cells.next()?.split(',').map(|import| import.trim().trim_matches('`').to_owned());
        Some((name, imports.filter(|import| import != "none").collect()))
    };
    let table: BTreeMap<_, _> = rows.filter_map(split).collect();
    if table.is_empty() { None } else { Some(table) }
}

/// The internal crates in the normal and build dependencies of a manifest, with line from 1.
fn dependencies(manifest: &str, names: &BTreeSet<&str>) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut inside = false;
    for (number, line) in manifest.lines().enumerate() {
        let line = line.trim();
        let mut mentioned = Vec::new();
        if let Some(section) = line.strip_prefix('[') {
            let section = section.split(']').next().unwrap_or("");
            let (table, entry) = match section.rsplit_once("dependencies.") {
                Some((prefix, entry)) => (format!("{prefix}dependencies"), Some(entry)),
                None => (section.to_owned(), None),
            };
            inside = table.ends_with("dependencies") && !table.ends_with("dev-dependencies");
            mentioned.extend(entry);
        } else {
            mentioned.extend(line.split(['.', '=', ' ']).next());
        }
        if let Some((_, package)) = line.split_once("spindle-") {
            mentioned.extend(package.split(['"', '\'']).next());
        }
        let import = mentioned.into_iter().find(|name| names.contains(name));
        if let (true, Some(import)) = (inside, import) {
            found.push((number + 1, import.to_owned()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::messages;
    use super::*;

    const TABLE: &str =
        "| crate | may import |\n| --- | --- |\n| kv | none |\n| backend | `kv` |\n| testing | kv, backend |\n";

    #[test]
    fn an_arrow_that_points_up_is_found() {
        let manifest =
            "[package]\nname = \"spindle-kv\"\n[dependencies]\nhalf.workspace = true\nbackend.workspace = true\n";
        let found = messages(check, &[("ARCHITECTURE.md", TABLE), ("crates/kv/Cargo.toml", manifest)]);
        assert_eq!(
            found,
            ["crates/kv/Cargo.toml:5: kv may not import backend: see the import table of ARCHITECTURE.md"]
        );
        for section in [
            "[dependencies.backend]\n",
            "[dependencies]\nb = { package = \"spindle-backend\" }\n",
            "[target.'cfg(unix)'.dependencies]\nbackend = {}\n",
            "[build-dependencies]\ntesting.workspace = true\n",
        ] {
            assert_eq!(
                messages(check, &[("ARCHITECTURE.md", TABLE), ("crates/kv/Cargo.toml", section)]).len(),
                1,
                "{section}"
            );
        }
    }

    #[test]
    fn the_table_must_exist_and_name_every_crate() {
        assert_eq!(messages(check, &[]).len(), 1);
        let found = messages(check, &[("ARCHITECTURE.md", TABLE), ("crates/extra/Cargo.toml", "")]);
        assert_eq!(found, ["crates/extra/Cargo.toml: crate extra is not in the table of ARCHITECTURE.md"]);
    }

    #[test]
    fn arrows_that_point_down_are_fine() {
        let manifest = "[dependencies]\nkv.workspace = true\n[dev-dependencies]\ntesting.workspace = true\n";
        let testing = "[dependencies]\nkv.workspace = true\nbackend.workspace = true\n";
        let files = [
            ("ARCHITECTURE.md", TABLE),
            ("crates/backend/Cargo.toml", manifest),
            ("crates/testing/Cargo.toml", testing),
        ];
        assert_eq!(messages(check, &files), [""; 0]);
    }
}
