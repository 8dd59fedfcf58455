//! From a model's name to an engine that serves it: resolve, print the plan, load, start.

use crate::args::ModelArgs;
use crate::quantity::{Bytes, TokenCount};
use anyhow::{Context, Result, bail, ensure};
use backend::cpu::{CpuBackend, CpuOptions};
use backend::{Backend, MemoryUse};
use engine::{CostModel, DECODE_SHARE_MAX, Engine, EngineConfig, TextFactory, TextOptions, TextStream};
use indicatif::{ProgressBar, ProgressStyle};
use model::{Decoder, DecoderLimits, Detokenizer, ModelSource, Opened};
use sparse::Specs;
use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

/// KV memory where nobody says otherwise: the smaller of this and half of the free memory.
const KV_MEMORY_DEFAULT: u64 = 4 << 30;

/// Requests that may wait where nobody says otherwise.
const MAX_QUEUE_DEFAULT: usize = 256;

/// Fewest tokens of a prefill pass.
const PREFILL_TOKENS_LEAST: usize = 512;

/// Everything decided about a model before a weight is read.
pub(crate) struct Plan {
    pub(crate) opened: Opened,
    pub(crate) bundled: bool,
    pub(crate) backend: CpuBackend,
    pub(crate) limits: DecoderLimits,
    pub(crate) kv_memory: Bytes,
    pub(crate) pool_rows: usize,
    pub(crate) decode_share: f64,
    pub(crate) prefix_cache: bool,
    /// Requests that may wait.
    pub(crate) max_queue: usize,
    pub(crate) specs: Specs,
}

impl Plan {
    /// Resolves flags against the model's files and this machine.
    pub(crate) fn resolve(args: &ModelArgs) -> Result<Self> {
        let source = match &args.model {
            Some(path) => ModelSource::detect(path)?,
            None => ModelSource::Bundled,
        };
        let opened = model::open(&source)?;
        let threads = args.threads.map_or(CpuOptions::default().threads, usize::from);
        let backend = CpuBackend::new(CpuOptions { threads, ..CpuOptions::default() })?;
        let config = opened.config();
        let kv_memory = args.kv_memory.unwrap_or_else(default_kv_memory);
        let geometry = config.geometry();
        let pool_rows = engine::pool_rows(kv_memory.0, &geometry);
        let fits = pool_rows.saturating_sub(2) * kv::PAGE_TOKENS;
        ensure!(
            0 < fits,
            "--kv-memory {kv_memory} holds no sequence: a row of 8 tokens of this model takes {}",
            Bytes(geometry.row_bytes() as u64)
        );
        let max_tokens = match args.max_model_len {
            Some(tokens) if config.max_positions < tokens.0 => {
                bail!("--max-model-len {} is beyond the model's {} positions", tokens.0, config.max_positions)
            }
            Some(TokenCount(0..16)) => bail!("--max-model-len is 16 or more: a prompt and its answer"),
            Some(tokens) => tokens.0,
            None => config.max_positions.min(fits),
        };
        ensure!(
            PREFILL_TOKENS_LEAST <= args.prefill_tokens.0,
            "--prefill-tokens {} is too low: every pass gathers what came before, use {PREFILL_TOKENS_LEAST} or more",
            args.prefill_tokens
        );
        let prefill_tokens = args.prefill_tokens.0.min(max_tokens);
        let limits = DecoderLimits { max_lanes: usize::from(args.max_lanes), max_tokens, prefill_tokens };
        ensure!(
            args.decode_share.0 <= DECODE_SHARE_MAX,
            "--decode-share {} leaves no time to read prompts; the most is {}",
            args.decode_share.0,
            DECODE_SHARE_MAX
        );
        let (bundled, specs) = (source == ModelSource::Bundled, Specs::of(geometry));
        let (decode_share, prefix_cache) = (args.decode_share.0, !args.no_prefix_cache);
        let max_queue = MAX_QUEUE_DEFAULT;
        Ok(Plan {
            specs,
            bundled,
            backend,
            limits,
            kv_memory,
            pool_rows,
            decode_share,
            prefix_cache,
            max_queue,
            opened,
        })
    }

    /// What will be allocated, line by line.
    pub(crate) fn memory(&self) -> Vec<MemoryUse> {
        let config = self.opened.config();
        let mut lines = Decoder::plan(&self.backend, config, self.limits);
        lines.extend(self.backend.runtime_plan(&config.runtime_shape(self.limits, self.pool_rows)));
        lines
    }

    /// The plan in one paragraph, for people.
    pub(crate) fn describe(&self) -> String {
        let config = self.opened.config();
        let mut text = String::new();
        let (name, kind) = (&config.name, config.architecture.name());
        let heads = format!("{} / {} heads of {}", config.q_heads, config.kv_heads, config.head_dim);
        let _ = writeln!(text, "model    {name} ({kind}, {} layers, hidden {}, {heads})", config.layers, config.hidden);
        let info = self.backend.info();
        let _ = writeln!(text, "backend  {} ({})", info.kind, info.description);
        let per_token = config.geometry().row_bytes() / kv::PAGE_TOKENS;
        let _ = writeln!(
            text,
            "context  {} tokens a sequence; the KV pool of {} holds {} tokens at {} each",
            self.limits.max_tokens,
            self.kv_memory,
            self.pool_rows * kv::PAGE_TOKENS,
            Bytes(per_token as u64)
        );
        let lines = self.memory();
        let shown = lines.iter().map(|line| format!("{} {}", line.name, Bytes(line.bytes)));
        let total = Bytes(lines.iter().map(|line| line.bytes).sum());
        let _ = write!(text, "memory   {}; at most {total}", shown.collect::<Vec<_>>().join(", "));
        text
    }

    /// Prints the plan, loads the weights under a progress bar and starts the engine.
    pub(crate) fn start(self) -> Result<Session> {
        eprintln!("{}", self.describe());
        let bar = progress_bar("loading", 0, "{bytes}/{total_bytes}");
        let decoder = Decoder::load(&self.backend, &self.opened.checkpoint, self.limits, &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        })
        .context("the model could not be loaded")?;
        bar.finish_and_clear();
        let decoder = Arc::new(decoder);
        let config = self.opened.config();
        let runtime = self.backend.runtime(&config.runtime_shape(self.limits, self.pool_rows))?;
        let row_bytes = config.geometry().row_bytes() as u64;
        let engine_config = EngineConfig {
            max_lanes: self.limits.max_lanes,
            prefill_tokens: self.limits.prefill_tokens,
            decode_share: self.decode_share,
            prefix_cache: self.prefix_cache,
            max_queue: self.max_queue,
            cost: CostModel::conservative(config.layer_parameters(), config.q_columns()),
            ..EngineConfig::new(self.pool_rows, row_bytes, self.limits.max_tokens, config.vocab_size)
        };
        let algorithms = decoder.algorithms().specs().all().to_vec();
        let opened = Arc::new(self.opened);
        let texts = Texts(opened.clone());
        let texts: TextFactory = Arc::new(move |options| texts.stream(options));
        let engine = Engine::start(runtime, decoder, algorithms, Some(texts), engine_config);
        Ok(Session { engine, opened, bundled: self.bundled, limits: self.limits })
    }
}

/// A model that answers.
pub(crate) struct Session {
    pub(crate) engine: Engine,
    pub(crate) opened: Arc<Opened>,
    pub(crate) bundled: bool,
    pub(crate) limits: DecoderLimits,
}

/// Makes the engine's tokens text.
struct Texts(Arc<Opened>);

impl Texts {
    fn stream(&self, options: &TextOptions) -> Box<dyn TextStream> {
        Box::new(Text(Some(self.0.tokenizer.detokenizer(&options.before, options.skip_special))))
    }
}

/// One completion's text; a vocabulary that cannot decode a token gives none for it.
struct Text(Option<Detokenizer>);

impl TextStream for Text {
    fn push(&mut self, token: kv::TokenId) -> String {
        self.0.as_mut().and_then(|text| text.push(token).ok()).unwrap_or_default()
    }

    fn finish(&mut self) -> String {
        self.0.take().and_then(|text| text.finish().ok()).unwrap_or_default()
    }
}

/// A bar on standard error that shows itself only where somebody looks.
pub(crate) fn progress_bar(what: impl Into<Cow<'static, str>>, length: u64, counts: &str) -> ProgressBar {
    let template = format!("{{prefix:>10}} [{{bar:30}}] {counts} {{msg}}");
    let style = ProgressStyle::with_template(&template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::new(length).with_style(style.progress_chars("=> ")).with_prefix(what);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn default_kv_memory() -> Bytes {
    let free = free_memory().unwrap_or(2 * KV_MEMORY_DEFAULT);
    Bytes(KV_MEMORY_DEFAULT.min(free / 2))
}

/// Free memory in bytes, where the system tells.
pub(crate) fn free_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}
