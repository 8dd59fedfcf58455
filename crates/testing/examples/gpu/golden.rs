//! `gpu golden`: the golden questions at every context, by the rules of `testing::golden_run`.

use crate::arguments::Arguments;
use testing::golden_run::{Table, gpu_options, needle_rig_on, pressed_rig_on};

/// Documents of each context: all that there are.
const ALL: usize = 16;

/// Asks all of them; whether no rule is broken.
pub(crate) fn run(arguments: &Arguments) -> bool {
    let backend = arguments.backend(true, None);
    let say = &mut |line: &str| println!("{line}");
    let table = match arguments.pool_share {
        None => Table::ask(|context| needle_rig_on(backend.as_ref(), context, gpu_options(context)), ALL, say),
        Some(share) => {
            let start = |context| pressed_rig_on(backend.as_ref(), context, share, gpu_options(context));
            Table::ask_pressed(start, ALL, say)
        }
    };
    arguments.write(&table.json(("device", &backend::Backend::info(backend.as_ref()).description)));
    table.problems.iter().for_each(|problem| println!("PROBLEM {problem}"));
    println!("{} golden rules are broken", table.problems.len());
    table.problems.is_empty()
}
