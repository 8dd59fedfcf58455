//! `cargo xtask golden`: the whole golden table, as Markdown on standard output and as JSON in the file named.

use backend::cpu::{CpuOptions, Isa};
use testing::golden_run::{Table, needle_rig};

fn main() {
    let json_path = std::env::args().nth(1);
    // One document of each: on two cores it takes an hour as it is.
    let start = |context| needle_rig(context, CpuOptions::default());
    let table = Table::ask(start, 1, &mut |line| println!("{line}"));
    if let Some(path) = json_path {
        let text = table.json(("instruction_set", Isa::detect().name()));
        std::fs::write(&path, format!("{text:#}\n")).unwrap_or_else(|e| panic!("cannot write {path}: {e}"));
    }
    for problem in &table.problems {
        println!("PROBLEM {problem}");
    }
    assert!(table.problems.is_empty(), "{} golden rules are broken", table.problems.len());
}
