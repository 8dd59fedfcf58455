//! What was typed after `spindle bench serve`.

use crate::quantity::{LengthRange, Time, TokenCount};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Which endpoint is asked.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum EndpointName {
    /// `/v1/completions`
    Completions,
    /// `/v1/chat/completions`
    Chat,
}

/// How prompts are sent.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum PromptName {
    /// Words, counted by the server's tokenizer
    Text,
    /// Token ids: exact lengths, if the server takes ids
    Ids,
}

/// Workloads of the SPIN paper.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum WorkloadName {
    /// Prompts of 32K to 120K tokens, 55K on average; answers of 512 to 15K, 5K on average
    LongbenchV2,
    /// Prompts of 16K to 19K tokens, 18K on average; answers of 7K to 32K, 12K on average
    Longgenbench,
}

/// `spindle bench serve`.
#[derive(Args)]
pub(crate) struct LoadArgs {
    /// The server, as http://HOST:PORT
    #[arg(long, value_name = "URL", help_heading = "Server")]
    pub(crate) url: String,

    /// Which endpoint is asked
    #[arg(long, value_enum, default_value = "completions", help_heading = "Server")]
    pub(crate) endpoint: EndpointName,

    /// The model's name [default: the first that the server lists]
    #[arg(long, value_name = "NAME", help_heading = "Server")]
    pub(crate) model: Option<String>,

    /// Sent as `Authorization: Bearer KEY`
    #[arg(long, value_name = "KEY", help_heading = "Server")]
    pub(crate) api_key: Option<String>,

    /// One more header for every request; may be given several times
    #[arg(long, value_name = "NAME: VALUE", value_parser = parse_header, help_heading = "Server")]
    pub(crate) header: Vec<(String, String)>,

    /// A JSON object merged into every request, for example '{"attention": {"algorithm": "sketch"}}'; null removes
    #[arg(long, value_name = "JSON", value_parser = parse_object, help_heading = "Server")]
    pub(crate) extra: Option<serde_json::Map<String, serde_json::Value>>,

    /// Longest time that an answer may take, to its end
    #[arg(long, value_name = "TIME", default_value = "1h", help_heading = "Server")]
    pub(crate) timeout: Time,

    /// Requests that run at once, each list entry a run: the next is sent when one ends [default: 1]
    #[arg(long, value_name = "NS", value_delimiter = ',', conflicts_with = "rate", help_heading = "Load")]
    pub(crate) concurrency: Vec<usize>,

    /// Requests a second, each list entry a run: they arrive at random (Poisson), whatever the server does
    #[arg(long, value_name = "RATES", value_delimiter = ',', value_parser = parse_rate, help_heading = "Load")]
    pub(crate) rate: Vec<f64>,

    /// Requests a run [default: 100, or without end with --duration]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = "Load")]
    pub(crate) requests: Option<u64>,

    /// Longest time in which a run sends; what runs then is waited for
    #[arg(long, value_name = "TIME", help_heading = "Load")]
    pub(crate) duration: Option<Time>,

    /// Most requests that run at once, whatever the rate
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=65536),
          help_heading = "Load")]
    pub(crate) max_concurrency: u32,

    /// Requests before the first run, all at once, that no number contains
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Load")]
    pub(crate) warmup: u64,

    /// Lengths like those of a data set
    #[arg(long, value_enum, conflicts_with_all = ["prompt_tokens", "gen_tokens"], help_heading = "Workload")]
    pub(crate) workload: Option<WorkloadName>,

    /// Length of prompts, or a range A..B of equally likely lengths
    #[arg(long, value_name = "TOKENS", default_value = "512", help_heading = "Workload")]
    pub(crate) prompt_tokens: LengthRange,

    /// Length of answers, or a range A..B of equally likely lengths
    #[arg(long, value_name = "TOKENS", default_value = "64", help_heading = "Workload")]
    pub(crate) gen_tokens: LengthRange,

    /// Factor of all lengths, for small models and machines
    #[arg(long, value_name = "F", default_value_t = 1.0, value_parser = parse_rate, help_heading = "Workload")]
    pub(crate) scale: f64,

    /// How prompts are sent
    #[arg(long, value_enum, default_value = "text", help_heading = "Workload")]
    pub(crate) prompt: PromptName,

    /// Number of token ids, for --prompt ids [default: the server's, if it says so]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Workload")]
    pub(crate) vocab: Option<u32>,

    /// Take the words of prompts from this file, each prompt from another place in it
    #[arg(long, value_name = "FILE", help_heading = "Workload")]
    pub(crate) text_file: Option<PathBuf>,

    /// Tokens at the start of every prompt that its whole group shares; a part of its length
    #[arg(long, value_name = "TOKENS", default_value = "0", help_heading = "Workload")]
    pub(crate) shared_prefix: TokenCount,

    /// Number of different shared prefixes
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..),
          help_heading = "Workload")]
    pub(crate) prefix_groups: u64,

    /// Seed of lengths, groups and arrivals
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Workload")]
    pub(crate) seed: u64,

    /// Seed of what prompts say; the same one again finds the server's cache warm [default: the clock]
    #[arg(long, value_name = "N", help_heading = "Workload")]
    pub(crate) prompt_seed: Option<u64>,

    /// Also count the requests a second that keep these limits, for example ttft=2s,tpot=50ms
    #[arg(long, value_name = "LIMITS", value_delimiter = ',', value_parser = parse_limit, help_heading = "Result")]
    pub(crate) slo: Vec<(Latency, Time)>,

    /// Write everything as JSON; without FILE to standard output instead of the tables
    #[arg(long, value_name = "FILE", num_args = 0..=1, default_missing_value = "-", help_heading = "Result")]
    pub(crate) json: Option<PathBuf>,

    /// Put every request into the JSON
    #[arg(long, requires = "json", help_heading = "Result")]
    pub(crate) save_requests: bool,

    /// Draw TTFT and TPOT over the load
    #[arg(long, value_name = "FILE", help_heading = "Result")]
    pub(crate) svg: Option<PathBuf>,
}

/// What can be promised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Latency {
    /// Time to the first token.
    Ttft,
    /// Time per token after it.
    Tpot,
}

fn parse_header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or_else(|| format!("'{text}' is not NAME: VALUE"))?;
    Ok((name.trim().to_string(), value.trim().to_string()))
}

fn parse_object(text: &str) -> Result<serde_json::Map<String, serde_json::Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("'{text}' is not a JSON object: {error}"))
}

fn parse_rate(text: &str) -> Result<f64, String> {
    let number = text.trim().parse::<f64>().ok().filter(|number| (1e-6..=1e6).contains(number));
    number.ok_or_else(|| format!("'{text}' is not a number above 0, such as 0.5"))
}

fn parse_limit(text: &str) -> Result<(Latency, Time), String> {
    let wrong = || format!("'{text}' is not a limit; write for example ttft=2s or tpot=50ms");
    let (name, time) = text.split_once('=').ok_or_else(wrong)?;
    let latency = match name.trim() {
        "ttft" => Latency::Ttft,
        "tpot" => Latency::Tpot,
        _ => return Err(wrong()),
    };
    Ok((latency, time.parse()?))
}
