//! `spindle eval perplexity`: the end of a text scored under each attention.

use crate::args::PerplexityArgs;
use crate::attention::Attention;
use crate::output::{line, print_json};
use crate::session::{Plan, progress_bar};
use crate::table::Table;
use anyhow::{Context, Result, ensure};
use eval::{Document, Score};
use serde_json::json;

/// Runs it.
pub(crate) fn perplexity(args: &PerplexityArgs) -> Result<()> {
    let plan = Plan::resolve(&args.model)?;
    let text = std::fs::read_to_string(&args.file).with_context(|| format!("cannot read {}", args.file.display()))?;
    let mut tokens = plan.opened.tokenizer.encode(&text, true)?;
    let most = plan.sizes.limits.max_tokens - 1;
    if let Some(context) = args.context {
        ensure!(context.0 <= most, "--context {context}: this model and --kv-memory hold {most} tokens");
    }
    tokens.truncate(args.context.map_or(most, |context| context.0));
    let scored = args.score.0;
    ensure!(
        0 < scored && scored + 2 <= tokens.len(),
        "--score {scored}: the text has {} tokens, of which at least two come before the scored ones",
        tokens.len()
    );
    let compare = &args.compare;
    let attentions = Attention::resolve_all(&plan.specs, &compare.attention, &compare.budget, &compare.selection)?;
    let session = plan.start()?;
    // The token before the first scored one is the first input of decode.
    let start = tokens.len() - scored - 1;
    let bar = progress_bar("reading", start as u64, "{pos}/{len} tokens");
    let document =
        Document::read(&session.engine, tokens[..start].to_vec(), Attention::dense().into(), |done, total| {
            bar.set_length(total as u64);
            bar.set_position(done as u64);
        })?;
    bar.finish_and_clear();
    let mut scores = Vec::new();
    for attention in attentions {
        let bar = progress_bar("scoring", 0, "").with_message(attention.label());
        let score = eval::score(&document, &tokens[start..], (&attention).into(), false)?;
        let sample = &tokens[start..start + 1 + scored.min(16)];
        let mass = eval::score(&document, sample, (&attention).into(), true)?.attention_mass;
        bar.finish_and_clear();
        scores.push((attention, score, mass));
    }
    match compare.json {
        true => print_json(&as_json(tokens.len(), scored, &scores)),
        false => print_table(tokens.len(), scored, &scores),
    }
}

fn print_table(context: usize, scored: usize, scores: &[(Attention, Score, Option<f32>)]) -> Result<()> {
    line(&format!("the last {scored} of {context} tokens, each a decode step\n"))?;
    let mut table = Table::new(["attention", "budget", "tokens exact", "perplexity", "mass", "tokens/s"]);
    for (attention, score, mass) in scores {
        table.row([
            attention.name.to_string(),
            attention.budget(),
            score.exact_tokens.to_string(),
            format!("{:.4}", score.perplexity()),
            mass.map_or("-".to_string(), |mass| format!("{mass:.3}")),
            format!("{:.1}", score.logprobs.len() as f64 / score.seconds.max(1e-9)),
        ]);
    }
    table.print()
}

fn as_json(context: usize, scored: usize, scores: &[(Attention, Score, Option<f32>)]) -> serde_json::Value {
    let one = |(attention, score, mass): &(Attention, Score, Option<f32>)| {
        json!({
            "attention": attention.name, "budget": attention.selection.budget, "perplexity": score.perplexity(),
            "exact_tokens": score.exact_tokens, "attention_mass": mass,
            "tokens_per_second": score.logprobs.len() as f64 / score.seconds.max(1e-9),
        })
    };
    json!({"context": context, "scored": scored, "results": scores.iter().map(one).collect::<Vec<_>>()})
}
