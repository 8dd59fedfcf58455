//! `spindle bench --gap`: how long a running stream waits for its next token while a long prompt is read beside it.

use crate::args::BenchArgs;
use crate::attention::Attention;
use crate::output::line;
use crate::session::Session;
use crate::table::Table;
use anyhow::{Result, ensure};
use engine::{Event, Request, RequestHandle, Source};
use serde_json::json;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

/// Tokens of the streams' own prompts.
const STREAM_PROMPT: usize = 512;

/// What one prompt did to the stream.
pub(super) struct Gap {
    prompt_tokens: usize,
    /// Longest time between two tokens of the stream, in seconds.
    longest: f64,
    /// Median time between two tokens.
    median: f64,
    /// Tokens of the stream while the prompt was read.
    tokens: usize,
    /// How long that took.
    seconds: f64,
}

/// Measures every prompt length beside one dense stream.
pub(super) fn measure(session: &Session, args: &BenchArgs) -> Result<Vec<Gap>> {
    let dense = Attention::dense();
    args.prompt_tokens.iter().map(|prompt| beside(session, &dense, prompt.0)).collect()
}

fn beside(session: &Session, dense: &Attention, prompt_tokens: usize) -> Result<Gap> {
    let most = session.limits.max_tokens.saturating_sub(STREAM_PROMPT + 2);
    ensure!(64 <= most, "--gap needs sequences of {} tokens or more", STREAM_PROMPT + 66);
    let mut stream = Request::new(Source::Prompt(super::bench::prompt(session, STREAM_PROMPT, 1)), dense.into(), most);
    (stream.ignore_eos, stream.cache) = (true, false);
    let mut stream = session.engine.submit(stream)?;
    wait_for_token(&mut stream);
    let prompt = super::bench::prompt(session, prompt_tokens, 2);
    let mut prompt = Request::new(Source::Prompt(prompt), dense.into(), 1);
    // What is measured is a prompt that is read.
    prompt.cache = false;
    let prompt = session.engine.submit(prompt)?;
    let (start, done) = (Instant::now(), in_background(prompt));
    let mut gaps = Vec::new();
    let mut last = Instant::now();
    while done.try_recv().is_err() {
        ensure!(wait_for_token(&mut stream), "the stream ended before the prompt was read: --max-model-len is too low");
        gaps.push(last.elapsed());
        last = Instant::now();
    }
    let seconds = start.elapsed().as_secs_f64();
    gaps.sort();
    let at = |i: usize| gaps.get(i).map_or(0.0, Duration::as_secs_f64);
    let (tokens, longest, median) = (gaps.len(), at(gaps.len().saturating_sub(1)), at(gaps.len() / 2));
    Ok(Gap { prompt_tokens, longest, median, tokens, seconds })
}

/// Whether there was another token.
fn wait_for_token(stream: &mut RequestHandle) -> bool {
    stream.any(|event| matches!(event, Event::Token(_)))
}

/// Tells when the request is over.
fn in_background(handle: RequestHandle) -> Receiver<()> {
    let (done, over) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || {
        handle.for_each(drop);
        // The reader may have given up.
        let _ = done.send(());
    });
    over
}

/// As a table.
pub(super) fn print(gaps: &[Gap]) -> Result<()> {
    line("\na running stream while a prompt is read beside it:\n")?;
    let mut table = Table::new(["prompt", "longest gap ms", "median gap ms", "stream tok/s", "prompt tok/s"]);
    for gap in gaps {
        table.row([
            gap.prompt_tokens.to_string(),
            format!("{:.1}", 1e3 * gap.longest),
            format!("{:.1}", 1e3 * gap.median),
            format!("{:.1}", gap.tokens as f64 / gap.seconds),
            format!("{:.0}", gap.prompt_tokens as f64 / gap.seconds),
        ]);
    }
    table.print()
}

/// As JSON.
pub(super) fn as_json(gaps: &[Gap]) -> Vec<serde_json::Value> {
    let one = |gap: &Gap| {
        json!({
            "prompt_tokens": gap.prompt_tokens, "longest_gap_ms": 1e3 * gap.longest, "median_gap_ms": 1e3 * gap.median,
            "stream_tokens_per_second": gap.tokens as f64 / gap.seconds,
            "prompt_tokens_per_second": gap.prompt_tokens as f64 / gap.seconds,
        })
    };
    gaps.iter().map(one).collect()
}
