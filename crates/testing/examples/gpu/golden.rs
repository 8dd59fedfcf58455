//! `gpu golden`: the golden questions at every context, by the rules of `testing::golden_run`.

use crate::arguments::Arguments;
use testing::golden_run::{Table, gpu_options, needle_rig_on};

/// Documents of each context: all that there are.
const ALL: usize = 16;

/// Asks all of them; whether no rule is broken.
pub(crate) fn run(arguments: &Arguments) -> bool {
    let backend = arguments.backend(true, None);
    let start = |context| needle_rig_on(backend.as_ref(), context, gpu_options(context));
    let table = Table::ask(start, ALL, &mut |line| println!("{line}"));
    arguments.write(&table.json(("device", &backend::Backend::info(backend.as_ref()).description)));
    table.problems.iter().for_each(|problem| println!("PROBLEM {problem}"));
    println!("{} golden rules are broken", table.problems.len());
    table.problems.is_empty()
}
