//! `spindle eval needle`: documents with hidden facts, every question a fork of the document, every attention asked the
//! same questions.

use crate::args::NeedleArgs;
use crate::attention::Attention;
use crate::output::{line, print_json};
use crate::quantity::TokenCount;
use crate::session::{Plan, Session, progress_bar};
use crate::table::Table;
use anyhow::{Context, Result, ensure};
use eval::{Asked, Document, Question};
use model::needle_text::{self, Fact};
use serde_json::{Value, json};
use std::path::Path;

/// Questions shown side by side.
const SHOWN: usize = 6;

/// Questions per attention whose attention mass is measured, which takes a dense pass beside every step.
const MASS_QUESTIONS: usize = 4;

/// Bands of depth in which accuracy is told apart.
const DEPTHS: usize = 4;

/// One document under one attention.
struct Measured {
    context_tokens: usize,
    attention: Attention,
    asked: Asked,
    depths: Vec<f64>,
    mass: Option<f64>,
}

/// Runs it.
pub(crate) fn needle(args: &NeedleArgs) -> Result<()> {
    let plan = Plan::resolve(&args.model)?;
    for context in &args.contexts {
        let most = plan.sizes.limits.max_tokens;
        ensure!(
            64 <= context.0 && context.0 <= most,
            "--contexts {context}: a document has 64 tokens at least and {most} at most with this --max-model-len"
        );
    }
    // What an algorithm does is asked at every length and budget: no floor and no shortest context unless given.
    let compare = &args.compare;
    let mut selection = compare.selection.clone();
    selection.budget_floor.get_or_insert(TokenCount(0));
    selection.min_context.get_or_insert(TokenCount(0));
    let attentions = Attention::resolve_all(&plan.specs, &compare.attention, &compare.budget, &selection)?;
    let session = plan.start()?;
    let mut measured = Vec::new();
    for context in &args.contexts {
        for number in 0..u64::from(args.documents) {
            let first = measured.is_empty();
            let write = args.write.as_deref().filter(|_| first);
            measured.extend(one_document(&session, args, *context, args.seed + number, &attentions, write)?);
        }
    }
    match compare.json {
        true => print_json(&as_json(args, &measured)),
        false => print_tables(&measured, &args.contexts, &attentions),
    }
}

fn one_document(
    session: &Session,
    args: &NeedleArgs,
    context: TokenCount,
    seed: u64,
    attentions: &[Attention],
    write: Option<&Path>,
) -> Result<Vec<Measured>> {
    let asked = usize::from(args.questions);
    let text = Text::make(session, context.0, asked, seed)?;
    if let Some(path) = write {
        std::fs::write(path, text.with_answers()).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let bar = progress_bar("reading", text.tokens.len() as u64, "{pos}/{len} tokens");
    let document = Document::read(&session.engine, text.tokens.clone(), Attention::dense().into(), |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    let rate = document.tokens as f64 / document.prefill_seconds;
    eprintln!(
        "read {} tokens in {:.1} s ({rate:.0} tokens/s), {asked} questions hidden in them",
        document.tokens, document.prefill_seconds
    );
    let mut all = Vec::new();
    for attention in attentions {
        let bar = progress_bar("asking", 0, "").with_message(attention.label());
        let at_once = session.limits.max_lanes.saturating_sub(1).max(1);
        let asked = eval::ask(&document, &text.questions, attention.into(), at_once, false)?;
        let sample = &text.questions[..MASS_QUESTIONS.min(text.questions.len())];
        let mass = eval::ask(&document, sample, attention.into(), at_once, true)?;
        let masses: Vec<f64> = mass.outcomes.iter().filter_map(|o| o.attention_mass).map(f64::from).collect();
        bar.finish_and_clear();
        all.push(Measured {
            context_tokens: context.0,
            attention: attention.clone(),
            asked,
            depths: text.questions.iter().map(|q| q.depth).collect(),
            mass: (!masses.is_empty()).then(|| masses.iter().sum::<f64>() / masses.len() as f64),
        });
    }
    if !args.compare.json {
        print_answers(session, &text, &all)?;
    }
    Ok(all)
}

/// A generated document in a model's tokens.
struct Text {
    tokens: Vec<u32>,
    text: String,
    facts: Vec<Fact>,
    questions: Vec<Question>,
}

impl Text {
    /// About `context` tokens with `asked` facts that are asked about, and others that are not.
    fn make(session: &Session, context: usize, asked: usize, seed: u64) -> Result<Self> {
        let tokenizer = &session.opened.tokenizer;
        let encode = |text: &str, special| tokenizer.encode(text, special);
        let facts = asked.max((context / 40).min(400));
        let mut words = context;
        let mut document = needle_text::document(words, facts, seed);
        if !session.bundled {
            // Other vocabularies take more or fewer tokens a word: scale by what this document takes.
            let tokens = encode(&document.text(), true)?.len();
            words = context * words / tokens.max(1);
            document = needle_text::document(words, facts.min(words / 20).max(1), seed);
        }
        let text = document.text();
        let tokens = if session.bundled { document.ids() } else { encode(&text, true)? };
        // Evenly spread over the document, so that every depth is asked about.
        let count = document.facts.len();
        let chosen: Vec<Fact> =
            (0..asked.min(count)).map(|i| document.facts[i * count / asked.min(count)].clone()).collect();
        let question = |fact: &Fact| -> Result<Question> {
            let words = fact.question().join(" ");
            let depth = fact.depth(&document);
            if session.bundled {
                let tokens = needle_text::ids(&fact.question());
                return Ok(Question { tokens, answer: fact.answer_ids().to_vec(), depth });
            }
            let digits = fact.digits.map(|d| d.to_string()).join(" ");
            let tokens = encode(&format!(" {words} the code for the {} {} is", fact.adjective, fact.noun), false)?;
            Ok(Question { tokens, answer: encode(&format!(" {digits}"), false)?, depth })
        };
        let questions = chosen.iter().map(question).collect::<Result<_>>()?;
        Ok(Text { tokens, text, questions, facts: chosen })
    }

    fn with_answers(&self) -> String {
        let mut out = format!("{}\n\n", self.text);
        for fact in &self.facts {
            out += &format!("{} {}\n", fact.question().join(" "), digits(fact));
        }
        out
    }
}

fn digits(fact: &Fact) -> String {
    fact.digits.map(|d| d.to_string()).join(" ")
}

/// The first questions with every attention's answer.
fn print_answers(session: &Session, text: &Text, all: &[Measured]) -> Result<()> {
    let mut header = vec!["question".to_string(), "true".to_string()];
    header.extend(all.iter().map(|m| m.attention.label()));
    let mut table = Table::with_header(header);
    let step = text.questions.len().div_ceil(SHOWN).max(1);
    for i in (0..text.questions.len()).step_by(step) {
        let mut row = vec![text.facts[i].question().join(" "), digits(&text.facts[i])];
        for measured in all {
            let outcome = &measured.asked.outcomes[i];
            let answer = session.opened.tokenizer.decode(&outcome.tokens, true)?;
            row.push(format!("{} {}", answer.trim(), if outcome.is_right { "✓" } else { "✗" }));
        }
        table.row(row);
    }
    line("")?;
    table.print()
}

fn print_tables(measured: &[Measured], contexts: &[TokenCount], attentions: &[Attention]) -> Result<()> {
    let depth = |band| format!("depth {}-{}%", 100 * band / DEPTHS, 100 * (band + 1) / DEPTHS);
    let mut header: Vec<String> =
        ["context", "attention", "budget", "tokens exact", "right"].map(str::to_string).to_vec();
    header.extend((0..DEPTHS).map(depth));
    header.extend(["mass", "tokens/s"].map(str::to_string));
    let mut table = Table::with_header(header);
    for context in contexts {
        for attention in attentions {
            let own: Vec<&Measured> = measured
                .iter()
                .filter(|m| m.context_tokens == context.0 && m.attention.label() == attention.label())
                .collect();
            table.row(summary_row(*context, attention, &own));
        }
    }
    line("")?;
    table.print()?;
    line("\nright: all digits of an answer; mass: share of dense attention that the exact tokens hold;")?;
    line("tokens/s: all questions decoding at once.")
}

fn summary_row(context: TokenCount, attention: &Attention, own: &[&Measured]) -> Vec<String> {
    let pairs: Vec<(f64, bool)> =
        own.iter().flat_map(|m| m.depths.iter().copied().zip(m.asked.outcomes.iter().map(|o| o.is_right))).collect();
    let share = |some: &[bool]| match some.len() {
        0 => "-".to_string(),
        n => format!("{:.3}", some.iter().filter(|right| **right).count() as f64 / n as f64),
    };
    let exact = own.iter().flat_map(|m| m.asked.outcomes.first()).map(|o| o.exact_tokens).max().unwrap_or(0);
    let mut row = vec![context.to_string(), attention.name.to_string(), attention.budget(), exact.to_string()];
    row.push(share(&pairs.iter().map(|(_, right)| *right).collect::<Vec<_>>()));
    for band in 0..DEPTHS {
        let inside = |depth: f64| ((depth * DEPTHS as f64) as usize).min(DEPTHS - 1) == band;
        row.push(share(&pairs.iter().filter(|(d, _)| inside(*d)).map(|(_, right)| *right).collect::<Vec<_>>()));
    }
    let masses: Vec<f64> = own.iter().filter_map(|m| m.mass).collect();
    row.push(match masses.len() {
        0 => "-".to_string(),
        n => format!("{:.3}", masses.iter().sum::<f64>() / n as f64),
    });
    let tokens: usize = own.iter().map(|m| m.asked.time.steps).sum();
    let seconds: f64 = own.iter().map(|m| m.asked.time.seconds).sum();
    row.push(format!("{:.0}", tokens as f64 / seconds.max(1e-9)));
    row
}

fn as_json(args: &NeedleArgs, measured: &[Measured]) -> Value {
    let one = |m: &Measured| {
        let outcomes: Vec<Value> = m
            .asked
            .outcomes
            .iter()
            .zip(&m.depths)
            .map(|(o, depth)| json!({"right": o.is_right, "depth": depth, "tokens": o.tokens}))
            .collect();
        json!({
            "context": m.context_tokens, "attention": m.attention.name, "budget": m.attention.selection.budget,
            "accuracy": m.asked.accuracy(), "attention_mass": m.mass,
            "exact_tokens": m.asked.outcomes.first().map(|o| o.exact_tokens),
            "tokens_per_second": m.asked.time.steps as f64 / m.asked.time.seconds.max(1e-9),
            "questions": outcomes,
        })
    };
    json!({"seed": args.seed, "results": measured.iter().map(one).collect::<Vec<_>>()})
}
