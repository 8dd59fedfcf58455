//! A whole benchmark: ask the server what it is, warm it up, one run per load, everything that was found.

use crate::body::{BodyTemplate, Endpoint};
use crate::client::Client;
use crate::exchange::{CountedBy, Measured};
use crate::failure::Failure;
use crate::lengths::WorkloadLengths;
use crate::peer::{TokensPerWord, discover, tokens_per_word};
use crate::prompt::{PromptKind, PromptSource, WordSource};
use crate::run::{Calls, Ended, Limits, Progress, Record, Stage, run};
use crate::summary::{Slo, Summary};
use crate::workload::{Load, Workload};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::sync::Arc;

/// Everything that decides what is sent.
#[derive(Clone, Debug, Serialize)]
pub struct Settings {
    /// Which endpoint.
    pub endpoint: Endpoint,
    /// The model's name; the server's first one if none is given.
    pub model: Option<String>,
    /// How prompts are sent.
    pub prompt: PromptKind,
    /// Token ids are below it; the server's if none is given and it says so.
    pub vocab: Option<u32>,
    /// Words for prompts of text, of a file; our own list if there are none.
    #[serde(skip)]
    pub text: Option<Arc<[String]>>,
    /// Lengths, scaled already.
    pub lengths: WorkloadLengths,
    /// What prompts have in common.
    pub shared: SharedPrefix,
    /// One run each, in this order.
    pub loads: Vec<Load>,
    /// Where each run ends.
    pub limits: Limits,
    /// Requests before the first run that no number contains.
    pub warmup: u64,
    /// The promise to count against.
    pub slo: Slo,
    /// Merged over every body; null removes a member.
    pub extra: Map<String, Value>,
    /// Of lengths, groups and arrivals.
    pub seed: u64,
    /// Of what prompts say: a second benchmark with the same one finds the first one's prompts in the server's cache.
    pub prompt_seed: u64,
}

/// Prefixes that several prompts have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct SharedPrefix {
    /// Tokens at the start of every prompt that all of its group have; a part of the prompt's length.
    pub tokens: usize,
    /// Prefixes that differ, one or more.
    pub groups: u64,
}

/// One run: its numbers, and the requests behind them.
#[derive(Clone, Debug, PartialEq)]
pub struct RunReport {
    /// The numbers.
    pub summary: Summary,
    /// In the order in which they ended.
    pub records: Vec<Record>,
}

/// What a benchmark has found.
#[derive(Clone, Debug)]
pub struct Report {
    /// What was asked for, resolved: the model's name and the vocabulary are in it.
    pub settings: Settings,
    /// The server's address.
    pub url: String,
    /// One per load; fewer if somebody stopped it.
    pub runs: Vec<RunReport>,
    tokens_per_word: Option<TokensPerWord>,
}

/// Why there is no report.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoadError {
    /// The server does not answer, or not as it should.
    #[error("{url} cannot be measured: {failure}")]
    Server {
        /// Its address.
        url: String,
        /// The first request's failure.
        failure: Failure,
    },
    /// Ids were asked for, and nobody says how many there are.
    #[error("the server does not say how many token ids it has")]
    VocabUnknown,
    /// Chats are made of text.
    #[error("the chat endpoint takes no token ids")]
    ChatOfIds,
    /// No warm-up request had an answer.
    #[error("no warm-up request succeeded; the first one's failure: {0}")]
    Warmup(Failure),
    /// It was stopped before it could measure.
    #[error("stopped before the first run")]
    Stopped,
}

/// Measures a server. `progress` is told about five times a second; when `stop` is ready, requests that run are
/// aborted and what was measured until then is the report.
///
/// # Errors
/// The server cannot be measured at all. Requests that fail are in the report.
pub async fn measure(
    client: &Client,
    mut settings: Settings,
    progress: &mut dyn FnMut(Progress),
    stop: impl Future<Output = ()>,
) -> Result<Report, LoadError> {
    let mut stop = std::pin::pin!(stop);
    let (calls, tokens_per_word) = tokio::select! {
        biased;
        () = stop.as_mut() => return Err(LoadError::Stopped),
        prepared = prepare(client, &mut settings) => prepared?,
    };
    let mut report = Report { url: client.target().to_string(), runs: Vec::new(), tokens_per_word, settings };
    let Settings { lengths, shared, limits, seed, slo, warmup, .. } = report.settings;
    let workload = |load| Workload::new(lengths, shared.groups, load, seed);
    if 0 < warmup {
        let limits = Limits { requests: Some(warmup), duration: None, ..limits };
        let workload = workload(Load::Concurrency(warmup.min(limits.max_concurrency as u64) as usize));
        let outcome = run(client, &calls, Stage::WarmUp, workload, limits, progress, stop.as_mut()).await;
        match outcome.records.iter().find_map(|record| record.outcome.as_ref().err()) {
            _ if outcome.ended == Ended::Stopped => return Err(LoadError::Stopped),
            Some(failure) if outcome.records.iter().all(|record| record.outcome.is_err()) => {
                return Err(LoadError::Warmup(failure.clone()));
            }
            _ => {}
        }
    }
    for (i, load) in report.settings.loads.iter().enumerate() {
        let outcome = run(client, &calls, Stage::Run(i), workload(*load), limits, progress, stop.as_mut()).await;
        let summary = Summary::new(*load, &outcome, slo);
        report.runs.push(RunReport { summary, records: outcome.records });
        if outcome.ended == Ended::Stopped {
            break;
        }
    }
    Ok(report)
}

/// Resolves what the settings leave to the server.
async fn prepare(client: &Client, settings: &mut Settings) -> Result<(Arc<Calls>, Option<TokensPerWord>), LoadError> {
    if (settings.endpoint, settings.prompt) == (Endpoint::Chat, PromptKind::Ids) {
        return Err(LoadError::ChatOfIds);
    }
    let failed = |failure| LoadError::Server { url: client.target().to_string(), failure };
    let peer = discover(client, settings.model.as_deref()).await.map_err(failed)?;
    settings.model = Some(peer.model.clone());
    let template = BodyTemplate { endpoint: settings.endpoint, model: peer.model, extra: settings.extra.clone() };
    let (source, measured) = match settings.prompt {
        PromptKind::Ids => {
            let vocab = settings.vocab.or(peer.vocab).ok_or(LoadError::VocabUnknown)?;
            settings.vocab = Some(vocab);
            (PromptSource::Ids { vocab }, None)
        }
        PromptKind::Text => {
            let words = settings.text.clone().map_or(WordSource::List, WordSource::File);
            let measured = tokens_per_word(client, &template, &words, settings.prompt_seed).await.map_err(failed)?;
            (PromptSource::Text { words, tokens_per_word: measured.tokens }, Some(measured))
        }
    };
    let (shared_tokens, prompt_seed) = (settings.shared.tokens, settings.prompt_seed);
    Ok((Arc::new(Calls { template, source, shared_tokens, prompt_seed }), measured))
}

impl Report {
    /// Everything as JSON, with one entry per request if asked for.
    #[must_use]
    pub fn as_json(&self, with_requests: bool) -> Value {
        let run = |run: &RunReport| {
            let mut value = json!(run.summary);
            if with_requests {
                value["requests"] = run.records.iter().map(request_as_json).collect();
            }
            value
        };
        json!({
            "url": self.url,
            "settings": self.settings,
            "tokens_per_word": self.tokens_per_word,
            "runs": self.runs.iter().map(run).collect::<Vec<_>>(),
        })
    }

    /// Requests with a whole answer, in all runs.
    #[must_use]
    pub fn succeeded(&self) -> u64 {
        self.runs.iter().map(|run| run.summary.succeeded).sum()
    }

    /// What a reader must know to trust the numbers, one sentence each.
    #[must_use]
    pub fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.runs.iter().any(|run| run.summary.tokens_counted_by == CountedBy::Chunks && 0 < run.summary.succeeded) {
            notes.push("the server gives no usage: each chunk with text is counted as one token".into());
        }
        if let Some(measured) = self.tokens_per_word {
            let words = format!("prompts are text of {:.2} tokens a word", measured.tokens);
            notes.push(match measured.by {
                crate::peer::MeasuredBy::Tokenize => format!("{words}, by the server's /tokenize"),
                crate::peer::MeasuredBy::Usage => format!("{words}, by the usage of one answer"),
                crate::peer::MeasuredBy::Assumed => format!("{words}, which nobody has measured: lengths are a guess"),
            });
        }
        let held: u64 = self.runs.iter().map(|run| run.summary.held_back).sum();
        if 0 < held {
            let most = self.settings.limits.max_concurrency;
            notes.push(format!("{held} requests were sent late because {most} were running: the rate was not kept"));
        }
        let late = self.runs.iter().map(|run| run.summary.late_ms_max).fold(0.0, f64::max);
        if held == 0 && 50.0 < late {
            notes.push(format!("this machine is busy: a request was sent {late:.0} ms after its arrival"));
        }
        let connect = self.runs.iter().map(|run| run.summary.connect_ms_max).fold(0.0, f64::max);
        if 500.0 < connect {
            // A full queue drops the first packet, which is sent again after 1, 3, 7 s.
            notes
                .push(format!("a connection took {connect:.0} ms, within its TTFT: the server's accept queue is full"));
        }
        if let Some(run) = self.runs.last().filter(|run| run.summary.ended == Ended::Stopped) {
            notes.push(format!("stopped early: {} requests were aborted and are in no number", run.summary.aborted));
        }
        notes
    }
}

fn request_as_json(record: &Record) -> Value {
    let (measured, failure) = match &record.outcome {
        Ok(measured) => (Some(measured), None),
        Err(failure) => (None, Some(json!({"kind": failure.kind(), "message": failure.to_string()}))),
    };
    let ms = |of: fn(&Measured) -> Option<f64>| measured.and_then(of).map(|seconds| 1e3 * seconds);
    json!({
        "index": record.index,
        "sent_seconds": record.sent,
        "prompt_tokens_made": record.prompt_tokens,
        "prompt_tokens": measured.and_then(|measured| measured.prompt_tokens),
        "cached_tokens": measured.and_then(|measured| measured.cached_tokens),
        "connect_ms": ms(|measured| Some(measured.connect)),
        "max_tokens": record.max_tokens,
        "completion_tokens": measured.map(|measured| measured.tokens),
        "ttft_ms": ms(|measured| Some(measured.ttft)),
        "tpot_ms": ms(Measured::tpot),
        "end_to_end_ms": ms(|measured| Some(measured.end_to_end)),
        "failure": failure,
    })
}
