//! What proves the GPU backend, in one executable with everything inside: a machine with a GPU needs no Rust and no
//! checkout. `tools/gpu.sh` runs all of it.

mod arguments;

mod check;

mod course;

mod golden;

mod greedy;

mod memory;

mod lost;

mod shares;

mod whole;

mod pressed;
mod rates;

use arguments::{Arguments, Machine};
use std::process::ExitCode;

const USAGE: &str = "\
usage: gpu COMMAND [--device N] [--cublas PATH] [--json FILE]
  check [--quick] [--only NAME]   conformance suites, captured steps, the engine, memory, failures
  golden [--pool-share X]         the bundled model's golden questions at every context; with X, from 16K on, on a pool
                                  of that share of a document's rows, host memory behind it
  greedy                          greedy tokens of the bundled model, CPU against GPU
  rates [--only KERNEL]           what each kernel reaches of what the card allows
  list                            names of the checks
A machine without a GPU skips with a notice; with one, whatever cannot run is a failure.
";

fn main() -> ExitCode {
    let arguments = match Arguments::parse(std::env::args().skip(1)) {
        Ok(arguments) => arguments,
        Err(message) => {
            eprintln!("{message}\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    match arguments.machine() {
        Machine::Ready(summary) => println!("{summary}; kernels for {}", cuda::architectures()),
        Machine::WithoutGpu(why) => {
            println!("skipped: {why}");
            return ExitCode::SUCCESS;
        }
        Machine::Broken(why) => {
            println!("FAILED: this machine has a GPU that cannot be used: {why}");
            return ExitCode::FAILURE;
        }
    }
    let passed = match arguments.command.as_str() {
        "check" => check::run(&arguments),
        "golden" => golden::run(&arguments),
        "greedy" => greedy::run(&arguments),
        "rates" => rates::run(&arguments),
        "list" => check::list(),
        memory::FREE => memory::tell_free(&arguments),
        memory::CHILD => memory::run(&arguments),
        lost::CHILD => lost::run(&arguments),
        other => {
            eprintln!("there is no command {other}\n{USAGE}");
            false
        }
    };
    if passed { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
