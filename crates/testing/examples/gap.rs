//! The longest time between two tokens of running streams while a long prompt is prefilled, with the bundled model:
//! `cargo run --release -p spindle-testing --example gap [PROMPT_TOKENS] [STREAMS]`.

use backend::cpu::CpuOptions;
use engine::{Event, Request, RequestHandle, Source};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use testing::golden_run::needle_rig;

fn main() {
    let argument = |at: usize, default: usize| {
        std::env::args().nth(at).map_or(default, |text| text.parse().expect("a number of tokens or streams"))
    };
    let (prompt_tokens, streams) = (argument(1, 32_768), argument(2, 4));
    let needle = needle_rig(prompt_tokens, CpuOptions::default());
    let dense = needle.attention("dense", |_| ());
    let ids = |tokens: usize, seed| {
        let mut ids = model::needle_text::document(tokens + 64, (tokens / 100).max(1), seed).ids();
        ids.truncate(tokens);
        ids
    };
    let submit = |tokens, seed, max_tokens| {
        let mut request = Request::new(Source::Prompt(ids(tokens, seed)), dense, max_tokens);
        request.ignore_eos = true;
        needle.engine.submit(request).expect("there is room")
    };
    let done = AtomicBool::new(false);
    let (first, end, mut gaps) = std::thread::scope(|scope| {
        let stream = |seed| {
            let (submit, done) = (&submit, &done);
            // Short enough that all of them and the prompt have rows; a stream that ends is followed by another.
            scope.spawn(move || {
                let mut all = Vec::new();
                while !done.load(Ordering::Relaxed) {
                    all.extend(gaps(submit(64, seed, 2000), done));
                }
                all
            })
        };
        let running: Vec<_> = (0..streams as u64).map(stream).collect();
        std::thread::sleep(Duration::from_millis(500));
        let start = Instant::now();
        let mut first = None;
        for event in submit(prompt_tokens, 99, 2) {
            if let Event::Token(_) = event {
                first.get_or_insert_with(|| start.elapsed());
            }
        }
        let end = start.elapsed();
        done.store(true, Ordering::Relaxed);
        let joined = running.into_iter().map(|thread| thread.join().expect("the reader does not panic"));
        (first, end, joined.flatten().collect::<Vec<_>>())
    });
    let first = first.unwrap_or_default();
    println!("{prompt_tokens} tokens beside {streams} streams: first token after {first:.1?}, end after {end:.1?}");
    gaps.sort();
    if let [.., longest] = gaps[..] {
        let at = |share: f64| gaps[((gaps.len() - 1) as f64 * share) as usize];
        println!("{} gaps: median {:.1?}, 99 % {:.1?}, longest {longest:.1?}", gaps.len(), at(0.5), at(0.99));
    }
}

/// The times between a stream's tokens, the first token aside, until it ends or is not wanted any more.
fn gaps(handle: RequestHandle, done: &AtomicBool) -> Vec<Duration> {
    let mut last: Option<Instant> = None;
    let mut gaps = Vec::new();
    for event in handle.take_while(|_| !done.load(Ordering::Relaxed)) {
        if let Event::Token(_) = event {
            let now = Instant::now();
            gaps.extend(last.replace(now).map(|before| now - before));
        }
    }
    gaps
}
