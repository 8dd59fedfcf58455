//! `cargo xtask golden [--json FILE]`: the bundled model's golden questions at every context, about an hour on 2 cores.

use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// Runs the table; the file named gets it as JSON too.
pub(crate) fn run(args: &[String]) -> Result<()> {
    let mut cargo = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    cargo.current_dir(crate::root());
    cargo.args(["run", "--release", "--quiet", "--package", "spindle-testing", "--example", "golden"]);
    match args {
        [] => {}
        [flag, file] if flag == "--json" => {
            cargo.arg("--").arg(std::path::absolute(file)?);
        }
        _ => bail!("usage: cargo xtask golden [--json FILE]"),
    }
    let status = cargo.status().context("cannot start cargo")?;
    ensure!(status.success(), "the golden table breaks its rules, or did not run to its end");
    Ok(())
}
