//! The cap of `--gpu-memory` holds as the driver counts: everything that this process takes, its context included.

use crate::arguments::{Arguments, gib};
use backend::{Backend, BackendError};
use model::ModelSource;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;
use testing::greedy::{choices, request};
use testing::rig::{Rig, RigOptions, document_and_question};

/// The command of the process that fills its memory.
pub(crate) const CHILD: &str = "memory-child";

/// The command of a process that has a context and nothing else, and says what is free beside it.
pub(crate) const FREE: &str = "free-child";

/// The cap under test.
const CAP: u64 = 5 << 30;

/// Runs the child: this process may hold memory of its own.
pub(crate) fn check(arguments: &Arguments) -> String {
    let output = command(arguments, CHILD).output().expect("this program runs");
    let said = String::from_utf8_lossy(&output.stdout).trim().to_string();
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    said.lines().last().unwrap_or_default().to_string()
}

/// Says what is free.
pub(crate) fn tell_free(arguments: &Arguments) -> bool {
    println!("{}", free(arguments));
    true
}

/// Fills the budget to its last granule, then decodes prompts of every algorithm, and watches the driver's count.
pub(crate) fn run(arguments: &Arguments) -> bool {
    let before = free(arguments);
    let backend = arguments.backend(true, Some(CAP));
    assert_eq!(backend.cap(), CAP);
    // What a context takes: the memory that is gone while another process has one.
    let beside = backend.memory().expect("the device works").0;
    let output = command(arguments, FREE).output().expect("this program runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let other: u64 = said.trim().lines().last().and_then(|line| line.parse().ok()).expect("a number of bytes");
    let context = beside.saturating_sub(other);

    let opened = model::open(&ModelSource::Bundled).expect("the bundled model opens");
    let rig = Rig::start_on(backend.as_ref(), &opened, None, RigOptions::new(8, 20_000).on_gpu());
    let mut rest = Vec::new();
    for cols in [64 << 20, 1 << 20, 1 << 14] {
        loop {
            match backend.buffer("a test", 1, cols / 4) {
                Ok(buffer) => rest.push(buffer),
                Err(BackendError::OutOfMemory { .. }) => break,
                Err(error) => panic!("{error}"),
            }
        }
    }
    let (least, done) = (AtomicU64::new(u64::MAX), AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let (free, _) = backend.memory().expect("the device works");
                least.fetch_min(free, Ordering::Relaxed);
                thread::sleep(Duration::from_millis(5));
            }
        });
        decode(&rig);
        done.store(true, Ordering::Relaxed);
    });
    let taken = context + before.saturating_sub(least.load(Ordering::Relaxed));
    let (taken_gib, cap_gib, context_mib) = (gib(taken), gib(CAP), context >> 20);
    assert!(taken <= CAP, "{taken_gib:.3} GiB taken, the cap is {cap_gib:.3} (a context is {context_mib} MiB)");
    println!(
        "{taken_gib:.3} GiB of {cap_gib:.3} taken at most, a context is {context_mib} MiB, {} buffers",
        rest.len()
    );
    true
}

/// Long and short prompts of every algorithm, alone and together: as many graphs as there are mixtures.
fn decode(rig: &Rig) {
    for names in [&["dense"][..], &["sketch"], &["dense", "shadowkv"], &["dense", "shadowkv+estimate", "sketch"]] {
        let submit = |name: &&str| {
            let request = request(document_and_question(15_000, 5), rig.attention(name, |_| ()), 40);
            rig.engine.submit(request).expect("the request is taken")
        };
        let handles: Vec<_> = names.iter().map(submit).collect();
        handles.into_iter().for_each(|handle| assert_eq!(choices(handle).len(), 40));
    }
}

fn free(arguments: &Arguments) -> u64 {
    let gpus = cuda::devices().unwrap_or_else(|error| panic!("{error}"));
    gpus[arguments.device].free_bytes
}

fn command(arguments: &Arguments, name: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program has a file"));
    command.args(arguments.words(name));
    command
}
