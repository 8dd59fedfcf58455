//! `cargo xtask ci`: every check in order of cost, stopping at the first failure.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::{kernels, tidy};

/// A stage runs Cargo with these arguments, or one of our own commands in this process.
enum Work {
    Cargo(&'static [&'static str]),
    Tidy,
    Kernels,
}

const STAGES: &[(&str, Work)] = &[
    ("formatting", Work::Cargo(&["fmt", "--all", "--check"])),
    ("tidy", Work::Tidy),
    ("clippy", Work::Cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"])),
    ("CUDA kernels", Work::Kernels),
    ("tests", Work::Cargo(&["test", "--workspace"])),
];

/// Runs all stages; the error of a failed one names the command that repeats it alone.
pub(crate) fn run(args: &[String]) -> Result<()> {
    if !args.is_empty() {
        bail!("`cargo xtask ci` takes no arguments, got {args:?}");
    }
    let start = Instant::now();
    for (name, work) in STAGES {
        eprintln!("==> {name}: {}", rerun(work));
        let stage_start = Instant::now();
        let outcome = match work {
            Work::Cargo(args) => cargo(args),
            Work::Tidy => tidy::run(&[]),
            Work::Kernels => kernels::run(&[]),
        };
        let seconds = stage_start.elapsed().as_secs_f64();
        outcome.with_context(|| format!("{name} failed after {seconds:.1} s; to repeat it alone: {}", rerun(work)))?;
        eprintln!("<== {name}: {seconds:.1} s");
    }
    eprintln!("all {} stages passed in {:.1} s", STAGES.len(), start.elapsed().as_secs_f64());
    Ok(())
}

fn cargo(args: &[&str]) -> Result<()> {
    let program = std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned());
    let status =
        Command::new(program).args(args).current_dir(crate::root()).status().context("Cargo does not start")?;
    if !status.success() {
        bail!("cargo {} ended with {status}", args[0]);
    }
    Ok(())
}

fn rerun(work: &Work) -> String {
    match work {
        Work::Cargo(args) => format!("cargo {}", args.join(" ")),
        Work::Tidy => "cargo xtask tidy".to_owned(),
        Work::Kernels => "cargo xtask kernels".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_repeated_by_the_command_that_it_prints() {
        assert_eq!(rerun(&Work::Cargo(&["test", "--workspace"])), "cargo test --workspace");
        assert_eq!(rerun(&Work::Tidy), "cargo xtask tidy");
        assert_eq!(rerun(&Work::Kernels), "cargo xtask kernels");
    }
}
