//! What was typed.

mod load;

pub(crate) use load::{EndpointName, Latency, LoadArgs, PromptName, WorkloadName};

use crate::device::DeviceName;
use crate::quantity::{Bytes, Share, TokenCount};
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};
use kv::bucketed_lru::Eviction;
use std::path::PathBuf;

/// Serves long-context language models: dense and sparse attention over a KV cache larger than fast memory.
#[derive(Parser)]
#[command(name = "spindle", version, max_term_width = 100)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Subcommand)]
pub(crate) enum Command {
    /// Show everything in a minute: a server, long documents, dense and sparse attention side by side
    Demo(DemoArgs),
    /// Answer a prompt, or chat on a terminal
    Run(RunArgs),
    /// Serve a model over HTTP with OpenAI's API
    Serve(ServeArgs),
    /// Measure accuracy: facts hidden in long documents, or the perplexity of a text
    #[command(subcommand)]
    Eval(EvalCommand),
    /// Measure prefill and decode speed by context and attention; with `serve`, a server under load
    Bench(BenchArgs),
    /// Show what this binary and machine have, and a model's memory plan, without loading it
    Info(InfoArgs),
}

/// Arguments as they are when nothing was typed.
pub(crate) fn defaults<A: ClapArgs>() -> A {
    let matches = A::augment_args(clap::Command::new("spindle")).get_matches_from(["spindle"]);
    A::from_arg_matches(&matches).expect("what is typed is optional")
}

/// Kinds of evaluation.
#[derive(Subcommand)]
pub(crate) enum EvalCommand {
    /// Questions about facts hidden in generated documents, answered under each attention side by side
    Needle(NeedleArgs),
    /// Score the last part of a text under each attention
    Perplexity(PerplexityArgs),
}

/// Where weights come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum WeightsName {
    /// The model's files.
    Own,
    /// Seeded noise.
    Random,
}

/// Which of the pages that a sparsely resident sequence has fetched goes first when another one needs its place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum EvictionName {
    /// The page that no step has selected for the longest time.
    Age,
    /// The page that scores lowest in the present step.
    Score,
    /// The page whose best score, which counts less with every step, is lowest.
    #[default]
    FadingScore,
}

impl EvictionName {
    /// As it is typed.
    pub(crate) fn name(self) -> &'static str {
        match self {
            EvictionName::Age => "age",
            EvictionName::Score => "score",
            EvictionName::FadingScore => "fading-score",
        }
    }
}

impl From<EvictionName> for Eviction {
    fn from(name: EvictionName) -> Self {
        match name {
            EvictionName::Age => Eviction::Age,
            EvictionName::Score => Eviction::Score,
            EvictionName::FadingScore => Eviction::FadingScore,
        }
    }
}

/// Where the model runs.
#[derive(ClapArgs, Clone)]
pub(crate) struct DeviceArgs {
    /// Device that runs the model: cpu, cuda, or cuda:1 for the second GPU
    #[arg(long, value_name = "DEVICE", default_value = "cpu", help_heading = "Device")]
    pub(crate) device: DeviceName,

    /// Most memory of the GPU, for everything on it [default: 90% of the GPU's, less what others hold]
    #[arg(long, value_name = "SIZE", help_heading = "Device")]
    pub(crate) gpu_memory: Option<Bytes>,

    /// libcublasLt.so.13 for the GPU, or the folder that holds it [default: looked for]
    #[arg(long, value_name = "PATH", env = "SPINDLE_CUBLAS", help_heading = "Device")]
    pub(crate) cublas: Option<PathBuf>,

    /// Threads of the CPU [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024), help_heading = "Device")]
    pub(crate) threads: Option<u16>,

    /// With --device cpu: keeps --host-memory in a file of this folder, for contexts that are larger than memory. The
    /// file has no name there, and its space comes back when the process ends
    #[arg(long, value_name = "FOLDER", help_heading = "Device")]
    pub(crate) host_folder: Option<PathBuf>,
}

/// Which model, and on what.
#[derive(ClapArgs, Clone)]
pub(crate) struct ModelArgs {
    /// A Hugging Face folder or a GGUF file; the bundled needle model if none is given
    #[arg(value_name = "MODEL")]
    pub(crate) model: Option<PathBuf>,

    /// The model's own weights, or random ones: noise in the shapes of its config.json, which is then all that it needs
    /// to have; right for speed, and answers mean nothing
    #[arg(long, value_name = "SOURCE", default_value = "own")]
    pub(crate) weights: WeightsName,

    /// For measurements with random weights: the pages that a step reads are made up, and this share of them is read
    /// again by the next step, 0 to 1. Selections are computed all the same, and answers mean nothing
    #[arg(long, value_name = "SHARE", help_heading = "Engine")]
    pub(crate) selection_overlap: Option<Share>,

    #[command(flatten)]
    pub(crate) device: DeviceArgs,

    /// Memory for KV and summary rows [default: on a CPU the smaller of 4GiB and half of the free memory, on a GPU what
    /// the rest leaves of --gpu-memory]
    #[arg(long, value_name = "SIZE", help_heading = "Engine")]
    pub(crate) kv_memory: Option<Bytes>,

    /// Host memory for KV behind the pool, 0 for none. Requests that select what they attend and do not fit into the
    /// pool run all the same: their pages are kept here, and what a step selects is fetched into the pool. Dense
    /// ones get rows as their answers grow, instead of what the longest answer takes, and wait here for those that came
    /// before them when the pool is full. It is there for GPUs, whose memory is small; on a CPU the pool is host memory
    /// already, and what is given here is better given to --kv-memory, but for trying it out
    #[arg(long, value_name = "SIZE", default_value = "0", help_heading = "Engine")]
    pub(crate) host_memory: Bytes,

    /// Which fetched page goes first when another one needs its place in the pool; needs --host-memory [default:
    /// fading-score]
    #[arg(long, value_name = "RULE", help_heading = "Engine")]
    pub(crate) eviction: Option<EvictionName>,

    /// Longest sequence, prompt and answer together [default: the model's, as far as the memory for KV goes]
    #[arg(long, value_name = "TOKENS", help_heading = "Engine")]
    pub(crate) max_model_len: Option<TokenCount>,

    /// Sequences that decode at once
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=4096),
          help_heading = "Engine")]
    pub(crate) max_lanes: u16,

    /// Tokens that pass the model together in prefill; a longer prompt takes several passes
    #[arg(long, value_name = "TOKENS", default_value = "8K", help_heading = "Engine")]
    pub(crate) prefill_tokens: TokenCount,

    /// Share of the time that running answers keep while a prompt is read, 0 to 0.95
    #[arg(long, value_name = "SHARE", default_value = "0.5", help_heading = "Engine")]
    pub(crate) decode_share: Share,

    /// Read every prompt from its first token; otherwise what begins like an earlier prompt is not read again
    #[arg(long, help_heading = "Engine")]
    pub(crate) no_prefix_cache: bool,
}

/// Which attention a request gets.
#[derive(ClapArgs, Clone)]
pub(crate) struct SelectionArgs {
    /// Fewest tokens that a step selects
    #[arg(long, value_name = "TOKENS", help_heading = "Attention")]
    pub(crate) budget_floor: Option<TokenCount>,

    /// Context below which every token is attended exactly
    #[arg(long, value_name = "TOKENS", help_heading = "Attention")]
    pub(crate) min_context: Option<TokenCount>,

    /// Tokens at the start that are always exact, rounded up to pages of 8
    #[arg(long, value_name = "TOKENS", help_heading = "Attention")]
    pub(crate) sink_tokens: Option<TokenCount>,

    /// Tokens at the end that are always exact [default: shadowkv 32, sketch 64]
    #[arg(long, value_name = "TOKENS", help_heading = "Attention")]
    pub(crate) window_tokens: Option<TokenCount>,
}

/// One attention.
#[derive(ClapArgs, Clone)]
pub(crate) struct AttentionArgs {
    /// Attention algorithm: dense, shadowkv, shadowkv+estimate or sketch
    #[arg(long, value_name = "NAME", default_value = "dense", help_heading = "Attention")]
    pub(crate) attention: String,

    /// Share of the context that a step selects, for example 0.8% [default: the algorithm's]
    #[arg(long, value_name = "SHARE", help_heading = "Attention")]
    pub(crate) budget: Option<Share>,

    #[command(flatten)]
    pub(crate) selection: SelectionArgs,
}

/// How tokens are chosen.
#[derive(ClapArgs, Clone)]
pub(crate) struct SamplingArgs {
    /// Randomness; 0 always takes the most likely token [default: the model's, or 0]
    #[arg(long, value_name = "T", allow_negative_numbers = true, help_heading = "Sampling")]
    pub(crate) temperature: Option<f32>,

    /// Keep only the N most likely tokens; 0 keeps all
    #[arg(long, value_name = "N", help_heading = "Sampling")]
    pub(crate) top_k: Option<usize>,

    /// Keep the fewest tokens that hold this probability
    #[arg(long, value_name = "P", allow_negative_numbers = true, help_heading = "Sampling")]
    pub(crate) top_p: Option<f32>,

    /// Keep tokens at least this share as likely as the most likely one
    #[arg(long, value_name = "P", allow_negative_numbers = true, help_heading = "Sampling")]
    pub(crate) min_p: Option<f32>,

    /// Make tokens that were seen less likely; 1 is off
    #[arg(long, value_name = "F", allow_negative_numbers = true, help_heading = "Sampling")]
    pub(crate) repetition_penalty: Option<f32>,

    /// Subtracted from the logits of tokens that the answer has
    #[arg(long, value_name = "F", default_value_t = 0.0, allow_negative_numbers = true, help_heading = "Sampling")]
    pub(crate) presence_penalty: f32,

    /// Subtracted from the logits for each time the answer has a token
    #[arg(long, value_name = "F", default_value_t = 0.0, allow_negative_numbers = true, help_heading = "Sampling")]
    pub(crate) frequency_penalty: f32,

    /// Seed of the noise: the same seed gives the same answer
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Sampling")]
    pub(crate) seed: u64,

    /// Stop before this text; may be given several times
    #[arg(long, value_name = "TEXT", help_heading = "Sampling")]
    pub(crate) stop: Vec<String>,

    /// Added to a token's logit, as ID:BIAS; may be given several times
    #[arg(long, value_name = "ID:BIAS", value_parser = parse_bias, help_heading = "Sampling")]
    pub(crate) logit_bias: Vec<(u32, f32)>,
}

fn parse_bias(text: &str) -> Result<(u32, f32), String> {
    let wrong = || format!("'{text}' is not ID:BIAS; write for example 42:-5");
    let (id, bias) = text.split_once(':').ok_or_else(wrong)?;
    Ok((id.parse().map_err(|_| wrong())?, bias.parse().map_err(|_| wrong())?))
}

/// `spindle run`.
#[derive(ClapArgs)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// The prompt
    #[arg(long, short, value_name = "TEXT", conflicts_with = "file")]
    pub(crate) prompt: Option<String>,

    /// Read the prompt from a file; without --prompt and --file it is read from standard input, or asked for
    #[arg(long, short, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,

    /// Send the text as it is, without the model's chat template
    #[arg(long)]
    pub(crate) raw: bool,

    /// Instructions that come before the chat
    #[arg(long, value_name = "TEXT", conflicts_with = "raw")]
    pub(crate) system: Option<String>,

    /// Most tokens of an answer
    #[arg(long, short = 'n', value_name = "TOKENS", default_value = "1024")]
    pub(crate) max_tokens: TokenCount,

    /// How many answers to draw
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) choices: u16,

    /// Print each token's log-probability and its N most likely alternatives to standard error
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=20))]
    pub(crate) logprobs: Option<u8>,

    #[command(flatten)]
    pub(crate) attention: AttentionArgs,

    #[command(flatten)]
    pub(crate) sampling: SamplingArgs,
}

/// `spindle demo`.
#[derive(ClapArgs)]
pub(crate) struct DemoArgs {
    /// Tokens of a document
    #[arg(long, value_name = "TOKENS", default_value = "8K")]
    pub(crate) context: TokenCount,

    /// Documents
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub(crate) documents: u16,

    /// Questions about each document
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) questions: u16,

    #[command(flatten)]
    pub(crate) device: DeviceArgs,
}

/// `spindle serve`.
#[derive(ClapArgs)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// Address to listen on; 0.0.0.0 lets other machines in
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1", help_heading = "Server")]
    pub(crate) host: String,

    /// Port to listen on; 0 takes a free one
    #[arg(long, value_name = "PORT", default_value_t = 8000, help_heading = "Server")]
    pub(crate) port: u16,

    /// Key that requests must carry; may be given several times [default: everybody may ask]
    #[arg(long, value_name = "KEY", env = "SPINDLE_API_KEY", hide_env_values = true, help_heading = "Server")]
    pub(crate) api_key: Vec<String>,

    /// Name under which the model answers; may be given several times [default: the file's or folder's name]
    #[arg(long, value_name = "NAME", help_heading = "Server")]
    pub(crate) served_model_name: Vec<String>,

    /// Requests that may wait for memory or a lane; further ones are answered with 429
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..),
          help_heading = "Server")]
    pub(crate) max_queue: u16,

    /// Seconds that running streams may go on after SIGTERM or ctrl-c
    #[arg(long, value_name = "SECONDS", default_value_t = 60, help_heading = "Server")]
    pub(crate) drain_seconds: u16,

    #[command(flatten)]
    pub(crate) attention: AttentionArgs,
}

/// Several attentions to compare.
#[derive(ClapArgs, Clone)]
pub(crate) struct CompareArgs {
    /// Attention algorithms, side by side
    #[arg(
        long,
        value_name = "NAMES",
        default_value = "dense,shadowkv,sketch",
        value_delimiter = ',',
        help_heading = "Attention"
    )]
    pub(crate) attention: Vec<String>,

    /// Budgets for each sparse algorithm, for example 0.8%,1.56% [default: the algorithm's own]
    #[arg(long, value_name = "SHARES", value_delimiter = ',', help_heading = "Attention")]
    pub(crate) budget: Vec<Share>,

    #[command(flatten)]
    pub(crate) selection: SelectionArgs,

    /// Print one JSON object instead of tables
    #[arg(long)]
    pub(crate) json: bool,
}

/// `spindle eval needle`.
#[derive(ClapArgs)]
pub(crate) struct NeedleArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// Document lengths in tokens
    #[arg(long, value_name = "TOKENS", default_value = "4K", value_delimiter = ',')]
    pub(crate) contexts: Vec<TokenCount>,

    /// Questions per document
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) questions: u16,

    /// Documents per length
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub(crate) documents: u16,

    /// Seed of the documents
    #[arg(long, value_name = "N", default_value_t = 7)]
    pub(crate) seed: u64,

    /// Write the first document, with its questions and answers below it, to a file and go on
    #[arg(long, value_name = "FILE")]
    pub(crate) write: Option<PathBuf>,

    #[command(flatten)]
    pub(crate) compare: CompareArgs,
}

/// `spindle eval perplexity`.
#[derive(ClapArgs)]
pub(crate) struct PerplexityArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// The text
    #[arg(long, short, value_name = "FILE")]
    pub(crate) file: PathBuf,

    /// Tokens of the text to read; the text is cut there [default: all, as far as the model goes]
    #[arg(long, value_name = "TOKENS")]
    pub(crate) context: Option<TokenCount>,

    /// Tokens at the end that are scored
    #[arg(long, value_name = "TOKENS", default_value = "256")]
    pub(crate) score: TokenCount,

    #[command(flatten)]
    pub(crate) compare: CompareArgs,
}

/// What `spindle bench` measures instead of the engine in this process.
#[derive(Subcommand)]
pub(crate) enum BenchCommand {
    /// Measure a server under load, ours or any that speaks OpenAI's HTTP
    Serve(Box<LoadArgs>),
}

/// `spindle bench`.
#[derive(ClapArgs)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    pub(crate) command: Option<BenchCommand>,

    #[command(flatten)]
    pub(crate) model: ModelArgs,

    /// Prompt lengths
    #[arg(long, value_name = "TOKENS", default_value = "512,4K", value_delimiter = ',')]
    pub(crate) prompt_tokens: Vec<TokenCount>,

    /// Tokens generated per sequence
    #[arg(long, value_name = "TOKENS", default_value = "64")]
    pub(crate) gen_tokens: TokenCount,

    /// Sequences that decode at once
    #[arg(long, value_name = "NS", default_value = "1", value_delimiter = ',')]
    pub(crate) batch: Vec<u16>,

    /// Repetitions; medians are shown
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=100))]
    pub(crate) repeat: u16,

    /// Also measure the longest gap between a running stream's tokens while each prompt is read beside it
    #[arg(long)]
    pub(crate) gap: bool,

    #[command(flatten)]
    pub(crate) compare: CompareArgs,
}

/// `spindle info`.
#[derive(ClapArgs)]
pub(crate) struct InfoArgs {
    #[command(flatten)]
    pub(crate) model: ModelArgs,

    #[command(flatten)]
    pub(crate) attention: AttentionArgs,

    /// Print one JSON object
    #[arg(long)]
    pub(crate) json: bool,
}
