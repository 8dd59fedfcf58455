//! `spindle bench`: prefill and decode speed by context, batch and attention.
//!
//! Every sequence of a batch has a prompt of its own, so that none reads another's rows out of a cache. Decode is timed
//! over whole runs, all attentions in turn in every repetition, and medians are shown.

use super::gap::{self, Gap};
use crate::args::BenchArgs;
use crate::attention::Attention;
use crate::session::{Plan, Session, progress_bar};
use crate::table::Table;
use anyhow::{Result, ensure};
use backend::Backend;
use engine::{Event, Feed, Request, Source};
use eval::Document;
use serde_json::json;
use std::time::Instant;

/// One line of the result.
struct Line {
    prompt_tokens: usize,
    batch: usize,
    attention: Attention,
    exact_tokens: usize,
    /// Tokens a second of reading the prompts, one after the other.
    prefill: f64,
    /// Tokens a second of all sequences together.
    decode: f64,
    /// Seconds per step of decode.
    step_seconds: f64,
}

/// Runs it.
pub(crate) fn bench(args: &BenchArgs) -> Result<()> {
    let plan = Plan::resolve(&args.model)?;
    let generated = args.gen_tokens.0;
    ensure!(1 < generated, "--gen-tokens {generated}: a rate takes at least 2 tokens");
    for prompt in &args.prompt_tokens {
        let most = plan.limits.max_tokens;
        ensure!(
            0 < prompt.0 && prompt.0 + generated + 2 <= most,
            "--prompt-tokens {prompt}: with {generated} generated tokens a prompt has 1 to {} tokens here",
            most.saturating_sub(generated + 2)
        );
    }
    let device = plan.backend.info().description;
    let session = plan.start()?;
    let compare = &args.compare;
    let algorithms = session.decoder.algorithms();
    let attentions = Attention::resolve_all(algorithms, &compare.attention, &compare.budget, &compare.selection)?;
    let mut lines = Vec::new();
    for prompt in &args.prompt_tokens {
        for batch in &args.batch {
            ensure!(0 < *batch && *batch <= args.model.max_lanes, "--batch {batch}: from 1 to --max-lanes");
            lines.extend(measure(&session, args, prompt.0, usize::from(*batch), &attentions)?);
        }
    }
    let gaps = if args.gap { gap::measure(&session, args)? } else { Vec::new() };
    match compare.json {
        true => println!("{:#}", as_json(&session, &device, &lines, &gaps)),
        false => {
            print_table(&lines);
            if args.gap {
                gap::print(&gaps);
            }
        }
    }
    Ok(())
}

fn measure(
    session: &Session,
    args: &BenchArgs,
    prompt_tokens: usize,
    batch: usize,
    attentions: &[Attention],
) -> Result<Vec<Line>> {
    let dense = Attention::resolve(session.decoder.algorithms(), "dense", None, &args.compare.selection)?;
    let bar = progress_bar("reading", batch as u64, "{pos}/{len} prompts");
    let mut documents = Vec::new();
    for seed in 0..batch {
        let tokens = prompt(session, prompt_tokens, seed as u64);
        documents.push(Document::read(&session.engine, tokens, (&dense).into(), |_, _| ())?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let prefill = median(documents.iter().map(|d| d.tokens as f64 / d.prefill_seconds).collect());
    let bar = progress_bar("decoding", (usize::from(args.repeat) * attentions.len()) as u64, "{pos}/{len} runs");
    let mut seconds = vec![Vec::new(); attentions.len()];
    let mut exact = vec![0; attentions.len()];
    for _ in 0..args.repeat {
        for (i, attention) in attentions.iter().enumerate() {
            let (took, exact_tokens) = decode(&documents, attention, args.gen_tokens.0)?;
            seconds[i].push(took);
            exact[i] = exact_tokens;
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let steps = (args.gen_tokens.0 - 1) as f64;
    let line = |(i, attention): (usize, &Attention)| {
        let step_seconds = median(seconds[i].clone()) / steps;
        let (attention, exact_tokens) = (attention.clone(), exact[i]);
        let decode = batch as f64 / step_seconds;
        Line { prompt_tokens, batch, attention, exact_tokens, prefill, decode, step_seconds }
    };
    Ok(attentions.iter().enumerate().map(line).collect())
}

/// Seconds from the moment when every sequence decodes to the end, for `generated - 1` steps; exact tokens at the end.
fn decode(documents: &[Document<'_>], attention: &Attention, generated: usize) -> Result<(f64, usize)> {
    let request = |document: &Document<'_>| {
        let source = Source::Fork { parent: document.sequence(), tokens: vec![5], feed: Feed::Decode };
        let mut request = Request::new(source, attention.into(), generated);
        request.ignore_eos = true;
        document.engine().submit(request)
    };
    let mut handles = documents.iter().map(request).collect::<Result<Vec<_>, _>>()?;
    let mut start = Instant::now();
    let mut exact_tokens = 0;
    // The first sequence is admitted last but for those behind it, which join at once: the clock starts there.
    for (i, handle) in handles.iter_mut().enumerate() {
        let mut tokens = 0;
        for event in handle {
            match event {
                Event::Token(_) => {
                    tokens += 1;
                    if tokens == 1 && i == 0 {
                        start = Instant::now();
                    }
                }
                Event::Finished(finished) => exact_tokens = finished.attention.exact_tokens,
                Event::Refused(refusal) => return Err((*refusal).into()),
                Event::Failed(why) => anyhow::bail!("the engine failed: {why}"),
                _ => {}
            }
        }
    }
    Ok((start.elapsed().as_secs_f64(), exact_tokens))
}

/// Any text will do for speed: a needle document for the bundled model, spread ids for others.
pub(super) fn prompt(session: &Session, tokens: usize, seed: u64) -> Vec<u32> {
    let vocab = session.opened.config().vocab_size as u64;
    if session.bundled {
        let mut ids = model::needle_text::document(tokens + 64, (tokens / 100).max(1), seed).ids();
        ids.truncate(tokens);
        return ids;
    }
    (0..tokens as u64).map(|i| ((i + 1) * (seed + 3) * 2_654_435_761 % vocab) as u32).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn print_table(lines: &[Line]) {
    let mut table = Table::new([
        "prompt",
        "batch",
        "attention",
        "budget",
        "tokens exact",
        "prefill tok/s",
        "decode tok/s",
        "ms/step",
        "x dense",
    ]);
    for line in lines {
        let dense = lines.iter().find(|other| {
            other.attention.name == "dense" && (other.prompt_tokens, other.batch) == (line.prompt_tokens, line.batch)
        });
        table.row([
            line.prompt_tokens.to_string(),
            line.batch.to_string(),
            line.attention.name.to_string(),
            line.attention.budget(),
            line.exact_tokens.to_string(),
            format!("{:.0}", line.prefill),
            format!("{:.1}", line.decode),
            format!("{:.3}", 1e3 * line.step_seconds),
            dense.map_or("-".to_string(), |dense| format!("{:.2}", line.decode / dense.decode)),
        ]);
    }
    table.print();
}

fn as_json(session: &Session, device: &str, lines: &[Line], gaps: &[Gap]) -> serde_json::Value {
    let one = |line: &Line| {
        json!({
            "prompt_tokens": line.prompt_tokens, "batch": line.batch, "attention": line.attention.name,
            "budget": line.attention.selection.budget, "exact_tokens": line.exact_tokens,
            "prefill_tokens_per_second": line.prefill, "decode_tokens_per_second": line.decode,
            "step_ms": 1e3 * line.step_seconds,
        })
    };
    let results: Vec<_> = lines.iter().map(one).collect();
    json!({"model": session.opened.config().name, "device": device, "results": results, "gaps": gap::as_json(gaps)})
}
