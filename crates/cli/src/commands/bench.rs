//! `spindle bench`: prefill and decode speed by context, batch and attention.
//!
//! Every sequence of a batch has a prompt of its own, so that none reads another's rows out of a cache. Decode is timed
//! over whole runs, all attentions in turn in every repetition, and medians are shown.

use super::gap::{self, Gap};
use crate::args::BenchArgs;
use crate::attention::Attention;
use crate::output::print_json;
use crate::session::{Plan, Session, progress_bar};
use crate::table::Table;
use anyhow::{Result, ensure};
use engine::{Feed, Request, Source};
use eval::{Document, Drained};
use serde_json::json;

/// Most tokens of the prompt that is read before anything is timed.
const WARM_UP_TOKENS: usize = 4096;

/// One line of the result.
struct Line {
    prompt_tokens: usize,
    batch: usize,
    attention: Attention,
    exact_tokens: usize,
    /// Tokens a second of reading a prompt, its Index included.
    prefill: f64,
    /// Tokens a second of all sequences together.
    decode: f64,
    /// Seconds per step of decode.
    step_seconds: f64,
}

/// Runs it.
pub(crate) fn bench(args: &BenchArgs) -> Result<()> {
    let plan = Plan::resolve(&args.model)?;
    let (generated, compare) = (args.gen_tokens.0, &args.compare);
    let attentions = Attention::resolve_all(&plan.specs, &compare.attention, &compare.budget, &compare.selection)?;
    ensure!(1 < generated, "--gen-tokens {generated}: a rate takes at least 2 tokens");
    for batch in &args.batch {
        ensure!(0 < *batch && *batch <= args.model.max_lanes, "--batch {batch}: from 1 to --max-lanes");
    }
    for prompt in &args.prompt_tokens {
        check_prompt(&plan, args, prompt.0, &attentions)?;
    }
    let device = plan.device.backend.info().description;
    let session = plan.start()?;
    let mut lines = Vec::new();
    for prompt in &args.prompt_tokens {
        for batch in &args.batch {
            lines.extend(measure(&session, args, prompt.0, usize::from(*batch), &attentions)?);
        }
    }
    let gaps = if args.gap { gap::measure(&session, args)? } else { Vec::new() };
    if compare.json {
        return print_json(&as_json(&session, &device, &lines, &gaps));
    }
    print_table(&lines)?;
    if args.gap { gap::print(&gaps) } else { Ok(()) }
}

/// Everything that a run needs must fit before it starts: its documents stay in the pool.
fn check_prompt(plan: &Plan, args: &BenchArgs, prompt: usize, attentions: &[Attention]) -> Result<()> {
    let (most, generated) = (plan.sizes.limits.max_tokens, args.gen_tokens.0);
    ensure!(
        0 < prompt && prompt + generated + 2 <= most,
        "--prompt-tokens {prompt}: prompt and {generated} generated tokens must fit into {most} tokens"
    );
    let batch = usize::from(args.batch.iter().copied().max().unwrap_or(1));
    // KV, the summaries of every algorithm, and each sequence's incomplete rows, of the document and of its fork.
    let tokens = prompt + generated + 2;
    let summaries = |attention: &Attention| {
        let spec = plan.specs.get(attention.algorithm);
        spec.summary_row_tokens.map_or(0, |per_row| tokens.div_ceil(per_row) + 2)
    };
    let rows = batch * (kv::geometry::pages(tokens) + 4 + attentions.iter().map(summaries).sum::<usize>());
    ensure!(
        rows <= plan.sizes.pool_rows,
        "--batch {batch} with --prompt-tokens {prompt} takes {} of KV memory: raise {}",
        crate::quantity::Bytes((rows * plan.opened.config().geometry().row_bytes()) as u64),
        if plan.device.gpu.is_some() { "--gpu-memory or --kv-memory" } else { "--kv-memory" }
    );
    Ok(())
}

fn measure(
    session: &Session,
    args: &BenchArgs,
    prompt_tokens: usize,
    batch: usize,
    attentions: &[Attention],
) -> Result<Vec<Line>> {
    let bar = progress_bar("reading", batch as u64, "{pos}/{len} prompts");
    warm_up(session, prompt_tokens, batch, attentions)?;
    let mut documents = Vec::new();
    for seed in 0..batch {
        let tokens = prompt(session, prompt_tokens, seed as u64);
        documents.push(Document::read(&session.engine, tokens, Attention::dense().into(), |_, _| ())?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let of_all: Vec<&Document<'_>> = documents.iter().collect();
    let read_seconds = median(documents.iter().map(|d| d.prefill_seconds).collect());
    let bar = progress_bar("decoding", (usize::from(args.repeat) * attentions.len()) as u64, "{pos}/{len} runs");
    // The first fork under an algorithm carries the document's Index: run it before anything is timed.
    let mut index_seconds = Vec::new();
    for attention in attentions {
        let drained = decode(&of_all, attention, 2)?;
        index_seconds.push(median(drained.iter().map(|d| d.finished.timings.prefill).collect()));
    }
    let mut seconds = vec![Vec::new(); attentions.len()];
    let mut exact = vec![0; attentions.len()];
    for _ in 0..args.repeat {
        for (i, attention) in attentions.iter().enumerate() {
            let drained = decode(&of_all, attention, args.gen_tokens.0)?;
            let time = eval::batch_time(&drained);
            seconds[i].push(time.seconds * batch as f64 / time.steps as f64);
            exact[i] = drained[0].finished.attention.exact_tokens;
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    let line = |(i, attention): (usize, &Attention)| {
        let step_seconds = median(seconds[i].clone());
        let (attention, exact_tokens) = (attention.clone(), exact[i]);
        let prefill = prompt_tokens as f64 / (read_seconds + index_seconds[i]);
        Line {
            prompt_tokens,
            batch,
            attention,
            exact_tokens,
            prefill,
            decode: batch as f64 / step_seconds,
            step_seconds,
        }
    };
    Ok(attentions.iter().enumerate().map(line).collect())
}

/// Reads a prompt and decodes behind it, so that what happens once (kernels loaded, steps captured, weights paged in,
/// the first guess of what a unit costs) is not timed.
fn warm_up(session: &Session, prompt_tokens: usize, batch: usize, attentions: &[Attention]) -> Result<()> {
    let tokens = prompt(session, prompt_tokens.min(WARM_UP_TOKENS), batch as u64);
    let document = Document::read(&session.engine, tokens, Attention::dense().into(), |_, _| ())?;
    attentions.iter().try_for_each(|attention| decode(&vec![&document; batch], attention, 2).map(drop))
}

/// Decodes a fork of every document, all at once.
fn decode(documents: &[&Document<'_>], attention: &Attention, generated: usize) -> Result<Vec<Drained>> {
    let request = |document: &&Document<'_>| {
        let source = Source::Fork { parent: document.sequence(), tokens: vec![5], feed: Feed::Decode };
        let mut request = Request::new(source, attention.into(), generated);
        request.ignore_eos = true;
        request
    };
    Ok(eval::drain(documents[0].engine(), documents.iter().map(request).collect())?)
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

fn print_table(lines: &[Line]) -> Result<()> {
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
    table.print()
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
    json!({
        "model": session.opened.config().name, "weights": session.opened.checkpoint.kind(), "device": device,
        "results": results, "gaps": gap::as_json(gaps),
    })
}
