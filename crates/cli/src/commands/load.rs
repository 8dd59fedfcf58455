//! `spindle bench serve`: a server under load. The server may be ours or any that speaks OpenAI's HTTP.

use crate::args::{EndpointName, Latency, LoadArgs, PromptName, WorkloadName};
use crate::output::{line, print_json};
use crate::session::progress_bar;
use crate::table::Table;
use anyhow::{Context, Result, bail, ensure};
use indicatif::ProgressBar;
use load::{
    Client, Ended, Endpoint, Limits, Load, LoadError, Percentiles, Progress, PromptKind, Report, Settings,
    SharedPrefix, Slo, Stage, Summary, Target, WorkloadLengths,
};
use std::io::IsTerminal;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Requests of a run where nobody says how long it is.
const REQUESTS_DEFAULT: u64 = 100;
/// Between two lines of progress where nobody looks at a bar.
const PLAIN_EVERY: Duration = Duration::from_secs(10);

/// Runs it.
pub(crate) fn load(args: &LoadArgs) -> Result<()> {
    let client = client(args)?;
    let settings = settings(args)?;
    for file in [&args.json, &args.svg].into_iter().flatten().filter(|file| !is_stdout(file)) {
        check_writable(file)?;
    }
    let mut shown = Shown::new(&settings);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let stop = async {
        // Where signals cannot be had, the run ends by itself all the same.
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    };
    let measured = runtime.block_on(load::measure(&client, settings, &mut |progress| shown.show(progress), stop));
    shown.finish();
    let report = measured.map_err(explain)?;
    print(args, &report)?;
    verdict(&report)
}

fn client(args: &LoadArgs) -> Result<Client> {
    let target = Target::parse(&args.url).context("--url")?;
    let client = Client::new(target, &args.header, args.timeout.0).with_context(|| format!("--url {}", args.url))?;
    Ok(match &args.api_key {
        Some(key) => client.with_api_key(key)?,
        None => client,
    })
}

fn settings(args: &LoadArgs) -> Result<Settings> {
    let lengths = match args.workload {
        Some(WorkloadName::LongbenchV2) => WorkloadLengths::LONGBENCH_V2,
        Some(WorkloadName::Longgenbench) => WorkloadLengths::LONGGENBENCH,
        None => WorkloadLengths { prompt: args.prompt_tokens.0, completion: args.gen_tokens.0 },
    };
    let (prompt, completion) = (lengths.prompt.scaled(args.scale), lengths.completion.scaled(args.scale));
    let closed = |concurrency: &usize| {
        let most = args.max_concurrency as usize;
        ensure!(0 < *concurrency && *concurrency <= most, "--concurrency {concurrency}: from 1 to --max-concurrency");
        Ok(Load::Concurrency(*concurrency))
    };
    let loads = match (args.concurrency.as_slice(), args.rate.as_slice()) {
        ([], []) => vec![Load::Concurrency(1)],
        (some, []) => some.iter().map(closed).collect::<Result<_>>()?,
        (_, rates) => rates.iter().map(|rate| Load::Rate(*rate)).collect(),
    };
    let endpoint = match args.endpoint {
        EndpointName::Completions => Endpoint::Completions,
        EndpointName::Chat => Endpoint::Chat,
    };
    let slo = |latency| args.slo.iter().find(|(of, _)| *of == latency).map(|(_, time)| 1e3 * time.0.as_secs_f64());
    let duration = args.duration.map(|time| time.0);
    Ok(Settings {
        endpoint,
        model: args.model.clone(),
        prompt: match args.prompt {
            PromptName::Text => PromptKind::Text,
            PromptName::Ids => PromptKind::Ids,
        },
        vocab: args.vocab,
        text: args.text_file.as_deref().map(words).transpose()?,
        lengths: WorkloadLengths { prompt, completion },
        shared: SharedPrefix { tokens: args.shared_prefix.0, groups: args.prefix_groups },
        loads,
        limits: Limits {
            requests: args.requests.or(if duration.is_none() { Some(REQUESTS_DEFAULT) } else { None }),
            duration,
            max_concurrency: args.max_concurrency as usize,
        },
        warmup: args.warmup,
        slo: Slo { ttft_ms: slo(Latency::Ttft), tpot_ms: slo(Latency::Tpot) },
        extra: args.extra.clone().unwrap_or_default(),
        seed: args.seed,
        prompt_seed: args.prompt_seed.unwrap_or_else(clock_seed),
    })
}

fn words(file: &Path) -> Result<Arc<[String]>> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let words: Arc<[String]> = text.split_whitespace().map(str::to_string).collect();
    ensure!(!words.is_empty(), "--text-file {}: it has no word", file.display());
    Ok(words)
}

/// Another one every time, small enough to be typed.
fn clock_seed() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

fn is_stdout(file: &Path) -> bool {
    file == Path::new("-")
}

/// Before an hour's run, and without touching what is there.
fn check_writable(file: &Path) -> Result<()> {
    let opened = std::fs::OpenOptions::new().append(true).create(true).open(file);
    opened.map(drop).with_context(|| format!("cannot write {}", file.display()))
}

/// Says what to do.
fn explain(error: LoadError) -> anyhow::Error {
    let advice = match &error {
        LoadError::Server { failure: load::Failure::Connect(_), .. } => "is it running? --url names it",
        LoadError::Server { failure: load::Failure::Status { code: 401 | 403, .. }, .. } => "give --api-key",
        LoadError::Server { .. } => "without a list at /v1/models, give --model",
        LoadError::VocabUnknown => "give --vocab, or use --prompt text",
        LoadError::ChatOfIds => "use --prompt text, or --endpoint completions",
        LoadError::Warmup(_) | LoadError::Stopped => return error.into(),
    };
    anyhow::anyhow!("{error}; {advice}")
}

/// A bar where somebody looks, else a line now and then.
struct Shown {
    stage: Option<Stage>,
    bar: Option<ProgressBar>,
    limits: Limits,
    warmup: u64,
    plain_after: Duration,
}

impl Shown {
    fn new(settings: &Settings) -> Self {
        let (limits, warmup) = (settings.limits, settings.warmup);
        Shown { stage: None, bar: None, limits, warmup, plain_after: PLAIN_EVERY }
    }

    fn show(&mut self, progress: Progress) {
        if self.stage.replace(progress.stage) != Some(progress.stage) {
            self.finish();
            self.plain_after = PLAIN_EVERY;
        }
        let requests = if progress.stage == Stage::WarmUp { Some(self.warmup) } else { self.limits.requests };
        let rate = progress.chunks as f64 / progress.elapsed.as_secs_f64().max(1e-3);
        let Progress { ended, failed, running, .. } = progress;
        let state = format!("{running} running, {failed} failed, {rate:.0} tok/s");
        if !std::io::stderr().is_terminal() {
            if self.plain_after <= progress.elapsed {
                self.plain_after = progress.elapsed + PLAIN_EVERY;
                let total = requests.map_or(String::new(), |requests| format!("/{requests}"));
                eprintln!("{}: {ended}{total} requests, {state}", label(progress));
            }
            return;
        }
        let bar = self.bar.get_or_insert_with(|| match (requests, self.limits.duration) {
            (Some(requests), _) => progress_bar(label(progress), requests, "{pos}/{len} requests, {eta} left;"),
            (None, time) => progress_bar(label(progress), time.map_or(0, |time| time.as_secs()), "{pos}/{len} s;"),
        });
        bar.set_position(if requests.is_some() { ended } else { progress.elapsed.as_secs() });
        bar.set_message(state);
    }

    fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn label(progress: Progress) -> String {
    match (progress.stage, progress.load) {
        (Stage::WarmUp, _) => "warm-up".into(),
        (_, Load::Concurrency(concurrency)) => format!("{concurrency} at once"),
        (_, Load::Rate(rate)) => format!("{rate}/s"),
    }
}

fn print(args: &LoadArgs, report: &Report) -> Result<()> {
    let summaries: Vec<Summary> = report.runs.iter().map(|run| run.summary.clone()).collect();
    let title = format!("{} at {}", report.settings.model.as_deref().unwrap_or(""), report.url);
    if let Some(file) = &args.svg {
        let write = std::fs::write(file, load::chart(&title, &summaries));
        write.with_context(|| format!("cannot write {}", file.display()))?;
    }
    match &args.json {
        Some(file) if is_stdout(file) => return print_json(&as_json(args, report)),
        Some(file) => {
            let write = std::fs::write(file, format!("{:#}\n", as_json(args, report)));
            write.with_context(|| format!("cannot write {}", file.display()))?;
        }
        None => {}
    }
    line(&title)?;
    line("")?;
    throughput(&summaries).print()?;
    line("")?;
    latency(&summaries).print()?;
    for summary in &summaries {
        for failure in &summary.failures {
            line(&format!("{}: {} failed: {}", name(summary), failure.count, failure.example))?;
        }
    }
    report.notes().iter().try_for_each(|note| line(&format!("note: {note}")))
}

fn as_json(args: &LoadArgs, report: &Report) -> serde_json::Value {
    let mut json = report.as_json(args.save_requests);
    json["notes"] = report.notes().into();
    json["spindle_version"] = env!("CARGO_PKG_VERSION").into();
    json
}

fn name(summary: &Summary) -> String {
    match summary.load {
        Load::Concurrency(concurrency) => format!("{concurrency} at once"),
        Load::Rate(rate) => format!("{rate}/s"),
    }
}

fn throughput(summaries: &[Summary]) -> Table {
    let has_cache = summaries.iter().any(|summary| summary.cached_share.is_some());
    let has_slo = summaries.iter().any(|summary| summary.goodput.is_some());
    let mut header: Vec<&str> = vec!["load", "ok", "failed", "s", "prompt tok", "gen tok"];
    header.extend(has_cache.then_some("cached"));
    header.extend(["req/s", "gen tok/s", "all tok/s"]);
    header.extend(has_slo.then_some("good req/s"));
    let mut table = Table::with_header(header.into_iter().map(str::to_string).collect());
    for summary in summaries {
        let cached = summary.cached_share.map_or("-".to_string(), |share| format!("{:.0}%", 100.0 * share));
        let mut row = vec![
            name(summary),
            summary.succeeded.to_string(),
            summary.failed.to_string(),
            format!("{:.1}", summary.window_seconds),
            format!("{:.0}", summary.prompt_tokens_mean),
            format!("{:.0}", summary.completion_tokens_mean),
        ];
        row.extend(has_cache.then_some(cached));
        row.extend([
            format!("{:.2}", summary.requests_per_second),
            format!("{:.1}", summary.completion_tokens_per_second),
            format!("{:.1}", summary.total_tokens_per_second),
        ]);
        row.extend(has_slo.then(|| format!("{:.2}", summary.goodput.unwrap_or(0.0))));
        table.row(row);
    }
    table
}

fn latency(summaries: &[Summary]) -> Table {
    let kinds = ["TTFT", "TPOT", "gap"];
    let header = kinds.iter().flat_map(|kind| [50, 90, 95, 99].map(|percent| format!("{kind} p{percent}")));
    let mut table = Table::with_header(std::iter::once("ms".to_string()).chain(header).collect());
    let cells = |percentiles: Option<Percentiles>| match percentiles {
        Some(found) => [found.p50, found.p90, found.p95, found.p99].map(milliseconds),
        None => ["-", "-", "-", "-"].map(str::to_string),
    };
    for summary in summaries {
        let found = [summary.ttft_ms, summary.tpot_ms, summary.gap_ms].into_iter().flat_map(cells);
        table.row(std::iter::once(name(summary)).chain(found));
    }
    table
}

/// Three digits, and all that stand before the point.
fn milliseconds(ms: f64) -> String {
    match ms {
        ..10.0 => format!("{ms:.2}"),
        ..100.0 => format!("{ms:.1}"),
        _ => format!("{ms:.0}"),
    }
}

/// An error as soon as a request failed, so that a script notices.
fn verdict(report: &Report) -> Result<()> {
    let failed: u64 = report.runs.iter().map(|run| run.summary.failed).sum();
    let succeeded = report.succeeded();
    let was_stopped = report.runs.iter().any(|run| run.summary.ended == Ended::Stopped);
    let refused = report.runs.iter().flat_map(|run| &run.summary.failures).any(|failure| failure.kind == "status");
    match (succeeded, failed) {
        (0, 0) if was_stopped => bail!("stopped before a request had ended"),
        (0, 0) => bail!("no request was sent: --duration is shorter than the time to the first arrival"),
        (0, _) if refused && report.settings.prompt == PromptKind::Ids => {
            bail!("no request succeeded: does the server take token ids? --prompt text needs none")
        }
        (0, _) => bail!("no request succeeded: see the failures above"),
        (_, 0) => Ok(()),
        (_, _) => bail!("{failed} of {} requests failed", succeeded + failed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use load::CountedBy;

    #[test]
    fn tables_say_what_was_measured() {
        let percentiles =
            |p50: f64| Percentiles { mean: p50, p50, p90: 2.0 * p50, p95: 3.0 * p50, p99: 4.0 * p50, max: 5.0 * p50 };
        let slow = Summary {
            load: Load::Rate(0.5),
            ended: Ended::Requests,
            succeeded: 40,
            failed: 0,
            aborted: 0,
            held_back: 0,
            late_ms_max: 0.2,
            connect_ms_max: 0.1,
            window_seconds: 80.04,
            requests_per_second: 0.4998,
            completion_tokens_per_second: 64.01,
            total_tokens_per_second: 28_134.0,
            goodput: None,
            prompt_tokens_mean: 56_162.4,
            completion_tokens_mean: 128.0,
            cached_share: None,
            tokens_counted_by: CountedBy::Usage,
            ttft_ms: Some(percentiles(812.3)),
            tpot_ms: Some(percentiles(5.612)),
            gap_ms: Some(percentiles(5.5)),
            end_to_end_ms: Some(percentiles(1500.0)),
            failures: Vec::new(),
        };
        let fast = Summary { load: Load::Rate(16.0), succeeded: 0, failed: 3, ttft_ms: None, ..slow.clone() };
        let lines = throughput(&[slow.clone(), fast.clone()]).lines();
        assert_eq!(
            lines.join("\n"),
            "\
| load  | ok | failed |    s | prompt tok | gen tok | req/s | gen tok/s | all tok/s |
| ----- | -: | -----: | ---: | ---------: | ------: | ----: | --------: | --------: |
| 0.5/s | 40 |      0 | 80.0 |      56162 |     128 |  0.50 |      64.0 |   28134.0 |
| 16/s  |  0 |      3 | 80.0 |      56162 |     128 |  0.50 |      64.0 |   28134.0 |"
        );
        let lines = latency(&[slow.clone(), fast]).lines();
        assert_eq!(
            lines[2..],
            [
                "| 0.5/s |      812 |     1625 |     2437 |     3249 |     5.61 |     11.2 |     16.8 |     22.4 |    \
                 5.50 |    11.0 |    16.5 |    22.0 |",
                "| 16/s  |        - |        - |        - |        - |     5.61 |     11.2 |     16.8 |     22.4 |    \
                 5.50 |    11.0 |    16.5 |    22.0 |",
            ]
        );
        let promised = Summary { goodput: Some(0.25), cached_share: Some(0.755), ..slow };
        let lines = throughput(&[promised]).lines();
        assert!(lines[0].contains("| cached |") && lines[0].ends_with("| good req/s |"), "{}", lines[0]);
        assert!(lines[2].contains("|    76% |") && lines[2].ends_with("|       0.25 |"), "{}", lines[2]);
    }
}
