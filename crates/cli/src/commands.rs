//! One file per subcommand.

mod demo;

mod run;

mod serve;

mod needle;

mod perplexity;

mod bench;

mod gap;

mod load;

mod info;

use crate::args::{BenchCommand, Command, EvalCommand};
use anyhow::Result;

/// Runs what was asked for.
pub(crate) fn run(command: Command) -> Result<()> {
    match command {
        Command::Demo(args) => demo::demo(&args),
        Command::Run(args) => run::run(&args),
        Command::Serve(args) => serve::serve(&args),
        Command::Eval(EvalCommand::Needle(args)) => needle::needle(&args),
        Command::Eval(EvalCommand::Perplexity(args)) => perplexity::perplexity(&args),
        Command::Bench(args) => match &args.command {
            Some(BenchCommand::Serve(serve)) => load::load(serve),
            None => bench::bench(&args),
        },
        Command::Info(args) => info::info(&args),
    }
}
