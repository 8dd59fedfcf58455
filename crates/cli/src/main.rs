//! The binary `spindle`. The only crate that names a concrete backend and reads flags and the environment.

mod args;

mod quantity;

mod commands;

mod device;

mod sizes;

mod session;

mod attention;

mod measured;

mod table;

mod output;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    let args = args::Args::parse();
    match commands::run(args.command) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) if output::is_closed_pipe(&error) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
