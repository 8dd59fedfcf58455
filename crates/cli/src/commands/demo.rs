//! `spindle demo`: the whole thing in a minute. Starts the server with the bundled model, sends it documents with
//! hidden facts over HTTP, and shows what each attention makes of them.

use crate::args::{self, DemoArgs, ModelArgs};
use crate::commands::serve;
use crate::output::line;
use crate::quantity::{Bytes, TokenCount};
use crate::session::Plan;
use crate::table::Table;
use anyhow::{Context, Result, ensure};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use load::{Client, EventKind, Target};
use model::needle_text::{self, Document, Fact};
use serde_json::{Value, json};
use std::time::{Duration, Instant};

const PATH: &str = "/v1/chat/completions";

/// Side by side.
const ATTENTIONS: [&str; 3] = ["dense", "shadowkv", "sketch"];

/// Tokens of the answer that decode's speed is taken from.
const SPEED_TOKENS: usize = 64;

/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(600);

/// Runs it.
pub(crate) fn demo(asked: &DemoArgs) -> Result<()> {
    let longest = asked.context.0 + SPEED_TOKENS + needle_text::QUESTION_WORDS + 2;
    let model = ModelArgs { device: asked.device.clone(), ..args::defaults() };
    let plan = Plan::resolve(&model)?;
    let most = plan.sizes.limits.max_tokens;
    ensure!(
        256 <= asked.context.0 && longest <= most,
        "--context {}: a document has 256 tokens at least and {} at most",
        asked.context,
        most - (longest - asked.context.0)
    );
    let began = Instant::now();
    let documents: Vec<Document> = (0..u64::from(asked.documents))
        .map(|seed| needle_text::document(asked.context.0, usize::from(asked.questions), 7 + seed))
        .collect();
    let scores = serve::with_server(plan, async |address| ask_all(&address, &documents).await)?;
    print(&scores, asked.context)?;
    line(&format!("{:.0} s in all; `spindle serve` starts the same server for you", began.elapsed().as_secs_f64()))
}

/// What one attention came to.
#[derive(Default)]
struct Score {
    right: usize,
    asked: usize,
    /// Seconds to the first token of the questions that read a document, and of those that found it cached.
    reading: Vec<f64>,
    cached: Vec<f64>,
    /// Tokens a second of decode.
    speeds: Vec<f64>,
    kv_bytes: u64,
    tokens: (u64, u64),
}

/// One answer over HTTP.
struct Answer {
    text: String,
    first_token: f64,
    tokens_per_second: f64,
    attention: Value,
}

async fn ask_all(address: &str, documents: &[Document]) -> Result<Vec<Score>> {
    let target = Target::parse(&format!("http://{address}"))?;
    let client = Client::new(target, &[], PATIENCE)?;
    line(&format!("a server with the bundled model runs at http://{address}"))?;
    let lines = MultiProgress::new();
    let style = ProgressStyle::with_template("{prefix:>10} [{bar:20}] {pos}/{len} {msg}")?.progress_chars("=> ");
    let questions: usize = documents.iter().map(|document| document.facts.len()).sum();
    let bar = |name: &&'static str| {
        lines.add(ProgressBar::new(questions as u64).with_style(style.clone()).with_prefix(*name))
    };
    let bars: Vec<ProgressBar> = ATTENTIONS.iter().map(bar).collect();
    let mut scores = Vec::new();
    for (number, (name, bar)) in ATTENTIONS.iter().zip(&bars).enumerate() {
        let mut score = Score::default();
        for document in documents {
            // Without its first words a document is another one: every attention reads its own.
            let text = document.words[number..].join(" ");
            ask_document(&client, name, &text, &document.facts, &mut score, bar).await?;
        }
        bar.abandon();
        if bar.is_hidden() {
            line(&format!("{name}: {}", score.summary()))?;
        }
        scores.push(score);
    }
    Ok(scores)
}

async fn ask_document(
    client: &Client,
    attention: &str,
    text: &str,
    facts: &[Fact],
    score: &mut Score,
    bar: &ProgressBar,
) -> Result<()> {
    for (number, fact) in facts.iter().enumerate() {
        let answer = ask(client, attention, &format!("{text} {}", fact.question().join(" ")), false).await?;
        let expected = fact.digits.map(|digit| digit.to_string());
        score.right += usize::from(answer.text.split_whitespace().take(4).eq(expected.iter().map(String::as_str)));
        score.asked += 1;
        let times = if number == 0 { &mut score.reading } else { &mut score.cached };
        times.push(answer.first_token);
        bar.inc(1);
        bar.set_message(score.summary());
    }
    let Some(fact) = facts.first() else { return Ok(()) };
    let long = ask(client, attention, &format!("{text} {}", fact.question().join(" ")), true).await?;
    score.speeds.push(long.tokens_per_second);
    let count = |field: &str| long.attention[field].as_u64().unwrap_or(0);
    score.kv_bytes = count("kv_bytes");
    score.tokens = (count("exact_tokens"), count("context_tokens"));
    bar.set_message(score.summary());
    Ok(())
}

/// Streams one answer; `long` goes on behind its end, so that there is something to time.
async fn ask(client: &Client, attention: &str, prompt: &str, long: bool) -> Result<Answer> {
    let body = json!({
        "messages": [{"role": "user", "content": prompt}], "temperature": 0,
        "stream": true, "stream_options": {"include_usage": true},
        "max_tokens": if long { SPEED_TOKENS } else { 8 }, "ignore_eos": long,
        "attention": {"algorithm": attention},
    });
    let mut stream = client.stream(PATH, body.to_string().into()).await?;
    let (mut text, mut first, mut last, mut usage) = (String::new(), None, None, Value::Null);
    while let Some(event) = stream.next().await? {
        let EventKind::Chunk(chunk) = event.kind else { continue };
        if chunk.has_tokens() {
            first.get_or_insert(event.at);
            last = Some(event.at);
            text += chunk.text();
        }
        if chunk.usage().is_some() {
            usage = chunk.value()["usage"].clone();
        }
    }
    let (first, last) = first.zip(last).context("the server sent no token")?;
    let tokens = usage["completion_tokens"].as_u64().unwrap_or(0) as f64;
    Ok(Answer {
        text,
        first_token: (first - stream.sent()).as_secs_f64(),
        tokens_per_second: (tokens - 1.0) / (last - first).as_secs_f64().max(1e-9),
        attention: usage["attention"].clone(),
    })
}

impl Score {
    fn summary(&self) -> String {
        let speed = self.speeds.last().map_or(String::new(), |speed| format!(", {speed:.0} tokens/s"));
        let read = self.reading.last().map_or(String::new(), |seconds| format!(", document read in {seconds:.2} s"));
        format!("{} of {} right{read}{speed}", self.right, self.asked)
    }
}

fn print(scores: &[Score], context: TokenCount) -> Result<()> {
    line("")?;
    let header =
        ["attention", "right", "first token, s", "when cached, s", "tokens/s", "KV read a token", "exact tokens"];
    let mut table = Table::new(header);
    for (name, score) in ATTENTIONS.iter().zip(scores) {
        table.row([
            name.to_string(),
            format!("{} of {}", score.right, score.asked),
            format!("{:.2}", median(&score.reading)),
            format!("{:.3}", median(&score.cached)),
            format!("{:.0}", median(&score.speeds)),
            Bytes(score.kv_bytes).to_string(),
            format!("{} of {}", score.tokens.0, score.tokens.1),
        ]);
    }
    table.print()?;
    line(&format!("\nfacts hidden in documents of {context} tokens; medians over HTTP"))
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(0.0)
}
