//! Rates of the heavy ops as shares of what the machine can do, both measured in the same run, round by round.
//!
//! `cargo bench -p spindle-backend -- [--rounds N] [--threads N | --clock thread] [--isa NAME] [--slice SECONDS]
//! [--only TEXT] [--json FILE --commit HASH --date DATE]`
//! With `--clock thread` there is one thread, and its time on a processor counts: for a machine that others use.
//! Prints a table; every number is the median of the rounds.

mod machine;
mod shapes;

use backend::cpu::{CpuBackend, CpuOptions, Isa};
use machine::Clock;
use serde_json::json;
use shapes::Case;

struct Args {
    rounds: usize,
    threads: usize,
    isa: Isa,
    clock: Clock,
    /// Seconds of a round's measurement of a case.
    slice: f64,
    only: String,
    json: Option<String>,
    commit: String,
    date: String,
}

impl Args {
    fn read() -> Self {
        let mut args = Args {
            rounds: 9,
            threads: CpuOptions::default().threads,
            isa: Isa::detect(),
            clock: Clock::start(),
            slice: 0.03,
            only: String::new(),
            json: None,
            commit: String::new(),
            date: String::new(),
        };
        let mut given = std::env::args().skip(1).filter(|arg| arg != "--bench");
        while let Some(name) = given.next() {
            let value = given.next().unwrap_or_else(|| panic!("{name} needs a value"));
            match name.as_str() {
                "--rounds" => args.rounds = value.parse().expect("--rounds is a number"),
                "--threads" => args.threads = value.parse().expect("--threads is a number"),
                "--isa" => args.isa = Isa::named(&value).expect("--isa is the name of an instruction set"),
                "--clock" if value == "thread" => (args.threads, args.clock) = (1, Clock::Thread),
                "--slice" => args.slice = value.parse().expect("--slice is a number of seconds"),
                "--only" => args.only = value,
                "--json" => args.json = Some(value),
                "--commit" => args.commit = value,
                "--date" => args.date = value,
                _ => panic!("unknown argument {name}"),
            }
        }
        args
    }
}

/// What a case's rate is a share of.
#[derive(Clone, Copy, PartialEq)]
enum Limit {
    /// Multiply-adds a second, each two operations.
    Flops,
    /// Bytes read a second.
    Bytes,
    /// None: a time is reported, for what is too small to be bound by either.
    Time,
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// Seconds of one call: the fewest calls that take `slice` seconds, at least one.
fn seconds(clock: Clock, slice: f64, work: &mut dyn FnMut(usize)) -> f64 {
    let (start, mut calls) = (clock.now(), 0);
    loop {
        work(calls);
        calls += 1;
        let elapsed = clock.now() - start;
        if elapsed > slice {
            return elapsed / calls as f64;
        }
    }
}

fn main() {
    let args = Args::read();
    let options = CpuOptions { threads: args.threads, isa: args.isa };
    let backend = CpuBackend::new(options).expect("the detected instruction set is available");
    println!("{}; {}, {} threads", machine::name(), options.isa.name(), options.threads);
    let mut cases: Vec<Case> = shapes::all(&backend, &args.only);
    let read = machine::ReadBandwidth::new();
    let (mut flops, mut bytes) = (Vec::new(), Vec::new());
    for _ in 0..args.rounds {
        flops.push(machine::fma_peak(args.clock, options.isa, options.threads));
        bytes.push(read.best(args.clock, options.isa, options.threads));
        for case in &mut cases {
            case.seconds.push(seconds(args.clock, args.slice, &mut case.work));
        }
    }
    let best = |rates: &[f64]| rates.iter().copied().fold(0.0, f64::max);
    let (best_flops, best_bytes) = (best(&flops), best(&bytes));
    let (flops, bytes) = (median(&flops), median(&bytes));
    println!("peak {:.1} GFLOP/s (registers only), {:.1} GB/s read\n", flops / 1e9, bytes / 1e9);
    println!("best {:.1} GFLOP/s, {:.1} GB/s", best_flops / 1e9, best_bytes / 1e9);
    println!("{:<68} {:>10} {:>14} {:>7} {:>7} {:>7}", "", "time", "rate", "share", "target", "best");
    let mut results = Vec::new();
    for case in &cases {
        let time = median(&case.seconds);
        let rate = case.amount / time;
        // On a machine that others use, the best round says more about the code, the median about the machine.
        let least = case.seconds.iter().copied().fold(f64::MAX, f64::min);
        let (rate_text, share, best_share) = match case.limit {
            Limit::Flops => {
                let share = case.amount / least / best_flops;
                (format!("{:.1} GFLOP/s", rate / 1e9), Some(rate / flops), Some(share))
            }
            Limit::Bytes => {
                let share = case.amount / least / best_bytes;
                (format!("{:.1} GB/s", rate / 1e9), Some(rate / bytes), Some(share))
            }
            Limit::Time => (format!("{:.2} us best", least * 1e6), None, None),
        };
        let percent = |share: Option<f64>| share.map_or(String::new(), |share| format!("{:.0} %", 100.0 * share));
        let time_text = if time < 1e-3 { format!("{:.2} us", time * 1e6) } else { format!("{:.2} ms", time * 1e3) };
        let (share_text, target_text) = (percent(share), percent(case.target));
        let best_text = percent(best_share);
        println!("{:<68} {time_text:>10} {rate_text:>14} {share_text:>7} {target_text:>7} {best_text:>7}", case.name);
        results.push(json!({
            "case": case.name, "seconds": time, "rate": rate, "share": share, "target": case.target,
            "best_seconds": least, "best_share": best_share,
        }));
    }
    if let Some(file) = &args.json {
        let record = json!({
            "hardware": machine::name(), "threads": options.threads,
            "clock": if matches!(args.clock, Clock::Thread) { "thread" } else { "wall" }, "isa": options.isa.name(),
            "commit": args.commit, "date": args.date, "rounds": args.rounds,
            "peak_flops": flops, "read_bytes_per_second": bytes, "results": results,
        });
        let text = serde_json::to_string_pretty(&record).expect("plain data");
        std::fs::write(file, text + "\n").unwrap_or_else(|e| panic!("cannot write {file}: {e}"));
    }
}
