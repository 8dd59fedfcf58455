//! `gpu check`: everything that can be told right from wrong in minutes.

use crate::arguments::Arguments;
use crate::course::{self, Check};
use crate::{lost, memory, pressed, shares, whole};
use backend::Backend;
use cuda::CudaBackend;
use std::cell::OnceCell;
use std::sync::Arc;
use testing::conformance::{Extent, MODEL_SUITES, MakeBackend, SELECTION_SUITES, Suite};
use testing::conformance::{fixture, heads};

/// Runs every check; whether all passed.
pub(crate) fn run(arguments: &Arguments) -> bool {
    // Suites run different ops under one key: their steps are not captured. They share one backend, made when the first
    // of them runs.
    let shared: OnceCell<Arc<CudaBackend>> = OnceCell::new();
    let backend = || shared.get_or_init(|| arguments.backend(false, None)).clone();
    let make = |_| -> Arc<dyn Backend> { backend() };
    let mut checks: Vec<Check<'_>> = suites().map(|(name, suite)| conformance(arguments, name, suite, &make)).collect();
    if !arguments.suites {
        checks.extend(others(arguments));
    }
    let is_lost = || {
        let probe =
            || fixture::Fixture::new(MakeBackend::new(&make, arguments.extent), heads::ANY_HEADS, 1, 8, 3).fence();
        shared.get().is_some() && std::panic::catch_unwind(std::panic::AssertUnwindSafe(probe)).is_err()
    };
    course::run(arguments, &checks, &is_lost)
}

/// Prints the names of all checks.
pub(crate) fn list() -> bool {
    let arguments = Arguments::parse(["check".to_string()].into_iter()).expect("a command");
    suites().for_each(|(name, _)| println!("{name}"));
    others(&arguments).iter().for_each(|check| println!("{}", check.name));
    true
}

fn suites() -> impl Iterator<Item = &'static (&'static str, Suite)> {
    MODEL_SUITES.iter().chain(SELECTION_SUITES)
}

fn conformance<'a>(
    arguments: &Arguments,
    name: &str,
    suite: &'a Suite,
    make: &'a dyn Fn(usize) -> Arc<dyn Backend>,
) -> Check<'a> {
    let extent = arguments.extent;
    let run = move || {
        suite(MakeBackend::new(make, extent));
        String::new()
    };
    Check { name: name.to_string(), run: Box::new(run) }
}

/// Checks of whole steps, of the engine, of memory and of failures.
fn others(arguments: &Arguments) -> Vec<Check<'_>> {
    type Run = fn(&Arguments) -> String;
    let mut all: Vec<(&str, Run)> = vec![
        ("captured_steps", whole::captured_steps),
        ("company", whole::company),
        ("full_budget", whole::full_budget),
        ("random_weights", whole::random_weights),
        ("shares_of_scores", shares::check),
        ("pressed", pressed::check),
    ];
    // A tool that watches every access takes memory of its own, and must not watch an error that is made on purpose.
    if arguments.extent == Extent::Full {
        all.extend([("memory_cap", memory::check as Run), ("lost_device", lost::check)]);
    }
    let check = |(name, run): (&str, Run)| Check { name: name.to_string(), run: Box::new(move || run(arguments)) };
    all.into_iter().map(check).collect()
}
