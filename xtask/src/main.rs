//! Developer commands: `cargo xtask ci`, `cargo xtask tidy`, `cargo xtask golden`, `cargo xtask cuda-toolkit`,
//! `cargo xtask kernels`.
//!
//! A command is a line of [`COMMANDS`] and a function; everything here is std and anyhow, so that
//! a fresh checkout checks itself with nothing but the Rust toolchain.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};

mod ci;
mod golden;
mod kernels;
mod tidy;
mod toolkit;

/// One subcommand: what is typed, what it is for, and what runs.
struct Command {
    name: &'static str,
    help: &'static str,
    run: fn(&[String]) -> Result<()>,
}

const COMMANDS: &[Command] = &[
    Command {
        name: "ci",
        help: "formatting, clippy, tidy, CUDA kernels and all tests: the same here and in CI",
        run: ci::run,
    },
    Command {
        name: "tidy",
        help: "the project's own rules: imports, names, docs, SAFETY, lengths, links",
        run: tidy::run,
    },
    Command {
        name: "golden",
        help: "the bundled model's golden questions at every context, against the reference",
        run: golden::run,
    },
    Command {
        name: "cuda-toolkit",
        help: "nvcc from PyPI into target/cuda-toolkit, for builds with the feature `cuda`",
        run: toolkit::run,
    },
    Command {
        name: "kernels",
        help: "every CUDA kernel for every architecture, clippy with the feature `cuda`, registers",
        run: kernels::run,
    },
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match dispatch(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(args: &[String]) -> Result<()> {
    let name = args.first().map_or("help", String::as_str);
    if ["help", "-h", "--help"].contains(&name) {
        print!("{}", usage());
        return Ok(());
    }
    match COMMANDS.iter().find(|command| command.name == name) {
        Some(command) => (command.run)(&args[1..]),
        None => bail!("there is no `cargo xtask {name}`\n{}", usage()),
    }
}

fn usage() -> String {
    let lines = COMMANDS.iter().map(|command| format!("  cargo xtask {:<14}{}\n", command.name, command.help));
    format!("usage:\n{}", lines.collect::<String>())
}

/// The repository's root; Cargo tells the package's folder at run time.
fn root() -> PathBuf {
    let package = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").to_owned());
    Path::new(&package).parent().expect("xtask lies in the repository").to_owned()
}
