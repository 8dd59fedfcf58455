//! Runs checks one after the other: a failure is kept and the next one runs, in a new process where the device is lost
//! or a check does not end.

use crate::arguments::Arguments;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use testing::conformance::Extent;

/// A check by name.
pub(crate) struct Check<'a> {
    /// Its name.
    pub(crate) name: String,
    /// Panics where something is wrong; says what it measured.
    pub(crate) run: Box<dyn Fn() -> String + 'a>,
}

/// The check in work.
struct Current {
    number: usize,
    name: String,
    since: Instant,
    failed: Vec<String>,
}

/// Runs the checks from the one on that the arguments say; whether none failed, those before included. `is_lost` says
/// whether this process can use the device no more.
pub(crate) fn run(arguments: &Arguments, checks: &[Check<'_>], is_lost: &dyn Fn() -> bool) -> bool {
    // A panic is a failed check: where and why, without a backtrace.
    std::panic::set_hook(Box::new(|panic| println!("        {panic}")));
    let mut failed = arguments.failed.clone();
    let current: Arc<Mutex<Option<Current>>> = Arc::default();
    watch(arguments, &current);
    let chosen = |name: &str| arguments.only.as_ref().is_none_or(|only| name.starts_with(only.as_str()));
    let mut ran = 0;
    for (number, check) in checks.iter().enumerate().skip(arguments.from).filter(|(_, check)| chosen(&check.name)) {
        let since = Instant::now();
        let work = Current { number, name: check.name.clone(), since, failed: failed.clone() };
        *current.lock().expect("the watch does not panic") = Some(work);
        let outcome = catch_unwind(AssertUnwindSafe(&check.run));
        *current.lock().expect("the watch does not panic") = None;
        let seconds = since.elapsed().as_secs_f64();
        ran += 1;
        match outcome {
            Ok(said) => println!("ok      {:<28}{seconds:>7.1} s  {said}", check.name),
            Err(_) => {
                println!("FAILED  {:<28}{seconds:>7.1} s", check.name);
                failed.push(check.name.clone());
                if is_lost() {
                    println!("        the device is lost: a new process goes on");
                    go_on(arguments, number + 1, &failed);
                }
            }
        }
        flush();
    }
    match failed.len() {
        0 => println!("all {ran} checks of this process passed, none skipped"),
        count => println!("{count} FAILED: {}", failed.join(", ")),
    }
    failed.is_empty() && (0 < ran || 0 < arguments.from)
}

/// Replaces this process where a check takes too long: its kernel may never end.
fn watch(arguments: &Arguments, current: &Arc<Mutex<Option<Current>>>) {
    let limit = Duration::from_secs(if arguments.extent == Extent::Reduced { 1200 } else { 240 });
    let (arguments, current) = (arguments.clone(), current.clone());
    thread::spawn(move || {
        loop {
            thread::sleep(Duration::from_secs(1));
            let mut current = current.lock().expect("a check's panic is caught");
            if let Some(late) = current.take_if(|current| limit < current.since.elapsed()) {
                println!("FAILED  {:<28} did not end in {} s: a new process goes on", late.name, limit.as_secs());
                go_on(&arguments, late.number + 1, &[late.failed, vec![late.name]].concat());
            }
        }
    });
}

/// Becomes a new process that runs the checks from `from` on.
fn go_on(arguments: &Arguments, from: usize, failed: &[String]) -> ! {
    flush();
    let mut command = Command::new(std::env::current_exe().expect("this program has a file"));
    command.args(arguments.words(&arguments.command)).args(["--from", &from.to_string()]);
    failed.iter().for_each(|name| {
        command.args(["--failed", name]);
    });
    panic!("cannot go on: {}", command.exec());
}

fn flush() {
    std::io::stdout().flush().expect("somebody reads what is said");
}
