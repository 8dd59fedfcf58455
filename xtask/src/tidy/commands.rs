//! The commands that the documents give are the ones that run.
//!
//! README.md's first two commands run the model and the tests, `.ci/run` calls the second one, and
//! every `cargo xtask` that a document names is a line of the command table.

use super::Finding;
use super::tree::Tree;

const README: &str = "README.md";
const CI: &str = ".ci/run";

/// Compares README.md, `.ci/run` and the command table.
pub(crate) fn check(tree: &Tree) -> Vec<Finding> {
    let mut findings = unknown_commands(tree);
    let text = tree.get(README).map_or("", |readme| &readme.text);
    let commands = shell_commands(text);
    let (Some(first), Some(second)) = (commands.first(), commands.get(1)) else {
        findings.push(Finding::new(README, 0, "needs two commands in `sh` blocks: the run and the tests"));
        return findings;
    };
    if !first.starts_with("cargo run --release -- ") {
        findings.push(Finding::new(README, 0, "the first command is `cargo run --release -- ...`"));
    }
    if !second.starts_with("cargo ") {
        findings.push(Finding::new(README, 0, "the second command is the test command, `cargo xtask ci`"));
    }
    match tree.get(CI) {
        None => findings.push(Finding::new(CI, 0, format!("is missing; it calls `{second}`"))),
        Some(ci) if !ci.executable => findings.push(Finding::new(CI, 0, "is not executable: chmod +x")),
        Some(ci) if !ci.text.lines().any(|line| line.trim() == second.as_str()) => {
            findings.push(Finding::new(CI, 0, format!("does not call README.md's test command `{second}`")));
        }
        Some(_) => {}
    }
    findings
}

/// The lines of the `sh` blocks, comments and continuations joined away.
fn shell_commands(text: &str) -> Vec<String> {
    let mut commands = Vec::new();
    let mut inside = false;
    let mut open = String::new();
    for line in text.lines().map(str::trim) {
        if line.starts_with("```") {
            inside = !inside && line == "```sh";
        } else if inside && !line.is_empty() && !line.starts_with('#') {
            open.push_str(line.trim_end_matches('\\'));
            if !line.ends_with('\\') {
                commands.push(std::mem::take(&mut open));
            }
        }
    }
    commands
}

fn unknown_commands(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for document in tree.with_extension("md") {
        for (number, line) in document.text.lines().enumerate() {
            for rest in line.split("cargo xtask ").skip(1) {
                let name: String = rest.chars().take_while(|char| char.is_alphanumeric() || *char == '-').collect();
                if !name.is_empty() && !crate::COMMANDS.iter().any(|command| command.name == name) {
                    let message = format!("there is no `cargo xtask {name}`");
                    findings.push(Finding::new(&document.path, number + 1, message));
                }
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::super::messages;
    use super::*;

    const RUN: &str = "```sh\ncargo run --release -- eval needle \\\n  --json\n```\n";
    const TEST: &str = "```sh\n# tests\ncargo xtask ci\n```\n";

    #[test]
    fn commands_that_differ_are_found() {
        let readme = format!("{RUN}{TEST}");
        for (readme, ci) in [
            (readme.as_str(), "cargo test"),
            (TEST, "cargo xtask ci"),
            (&format!("{TEST}{RUN}"), "cargo xtask ci"),
            (&format!("{readme}`cargo xtask gone`"), "cargo xtask ci"),
        ] {
            assert_ne!(messages(check, &[("README.md", readme), (".ci/run", ci)]), [""; 0], "{readme}");
        }
        assert_eq!(messages(check, &[("README.md", &readme)]), [".ci/run: is missing; it calls `cargo xtask ci`"]);
    }

    #[test]
    fn the_same_command_in_both_is_fine() {
        let readme = format!("{RUN}{TEST}`cargo xtask tidy` is a part of `cargo xtask ci`.\n");
        assert_eq!(messages(check, &[("README.md", &readme), (".ci/run", "set -e\ncargo xtask ci\n")]), [""; 0]);
    }
}
