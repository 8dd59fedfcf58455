//! From a model's name to an engine that serves it: resolve, print the plan, load, start.

use crate::args::{ModelArgs, WeightsName};
use crate::device::Device;
use crate::quantity::Bytes;
use crate::sizes::{self, Sizes};
use anyhow::{Context, Result, ensure};
use backend::MemoryUse;
use engine::{DECODE_SHARE_MAX, Engine, EngineConfig, TextFactory, TextOptions, TextStream};
use indicatif::{ProgressBar, ProgressStyle};
use model::{Decoder, DecoderLimits, Detokenizer, ModelSource, Opened, WeightSource};
use sparse::Specs;
use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

/// Requests that may wait where nobody says otherwise.
const MAX_QUEUE_DEFAULT: usize = 256;

/// Of random weights: which noise makes no difference.
const WEIGHT_SEED: u64 = 1;

/// Everything decided about a model before a weight is read.
pub(crate) struct Plan {
    pub(crate) opened: Opened,
    pub(crate) bundled: bool,
    pub(crate) device: Device,
    pub(crate) sizes: Sizes,
    pub(crate) decode_share: f64,
    pub(crate) prefix_cache: bool,
    /// Requests that may wait.
    pub(crate) max_queue: usize,
    pub(crate) specs: Specs,
    /// Of made-up selections, for measurements.
    pub(crate) selection_overlap: Option<f64>,
}

impl Plan {
    /// Resolves flags against the model's files and this machine.
    pub(crate) fn resolve(args: &ModelArgs) -> Result<Self> {
        let source = match &args.model {
            Some(path) => ModelSource::detect(path)?,
            None => ModelSource::Bundled,
        };
        let weights = match args.weights {
            WeightsName::Own => WeightSource::Files,
            WeightsName::Random => WeightSource::Random { seed: WEIGHT_SEED },
        };
        let opened = model::open_with(&source, weights)?;
        ensure!(
            args.decode_share.0 <= DECODE_SHARE_MAX,
            "--decode-share {} leaves no time to read prompts; the most is {}",
            args.decode_share.0,
            DECODE_SHARE_MAX
        );
        ensure!(
            args.selection_overlap.is_none() || weights != WeightSource::Files,
            "--selection-overlap makes every answer meaningless: it is for measurements with --weights random"
        );
        let device = Device::open(&args.device)?;
        let sizes = Sizes::resolve(args, &device, opened.config())?;
        Ok(Plan {
            specs: Specs::of(opened.config().geometry()),
            selection_overlap: args.selection_overlap.map(|share| share.0),
            bundled: source == ModelSource::Bundled && weights == WeightSource::Files,
            device,
            sizes,
            decode_share: args.decode_share.0,
            prefix_cache: !args.no_prefix_cache,
            max_queue: MAX_QUEUE_DEFAULT,
            opened,
        })
    }

    /// What will be allocated, line by line.
    pub(crate) fn memory(&self) -> Vec<MemoryUse> {
        let config = self.opened.config();
        sizes::plan(&self.device, config, self.sizes.limits, &self.sizes.shape(config))
    }

    /// What the plan takes beyond the free memory of the machine.
    pub(crate) fn warning(&self) -> Option<String> {
        let lines = self.memory();
        let (taken, lower) = match self.device.gpu {
            None => (sizes::total(&self.device, &lines), "--kv-memory, --host-memory or --max-model-len"),
            Some(_) => (self.sizes.host.memory.0, "--host-memory"),
        };
        let free = sizes::free_memory().filter(|free| *free < taken)?;
        Some(format!("the plan takes {} of memory, more than the {} free: lower {lower}", Bytes(taken), Bytes(free)))
    }

    /// The plan in one paragraph, for people.
    pub(crate) fn describe(&self) -> String {
        let config = self.opened.config();
        let mut text = String::new();
        let (name, kind) = (&config.name, config.architecture.name());
        let heads = format!("{} / {} heads of {}", config.q_heads, config.kv_heads, config.head_dim);
        let _ = writeln!(text, "model    {name} ({kind}, {} layers, hidden {}, {heads})", config.layers, config.hidden);
        if self.opened.checkpoint.is_random() {
            let _ = writeln!(text, "weights  random: answers mean nothing");
        }
        if let Some(overlap) = self.selection_overlap {
            let _ = writeln!(text, "select   made-up pages, {overlap} of which stay for a step: answers mean nothing");
        }
        if self.opened.tokenizer.is_stand_in() {
            let _ = writeln!(text, "tokens   the model has no tokenizer: the bytes of a text are its tokens");
        }
        let info = self.device.backend.info();
        let _ = writeln!(text, "backend  {} ({})", info.kind, info.description);
        let per_token = config.geometry().row_bytes() / kv::PAGE_TOKENS;
        let _ = writeln!(
            text,
            "context  {} tokens a sequence; the KV pool of {} holds {} tokens at {} each",
            self.sizes.limits.max_tokens,
            self.sizes.kv_memory,
            self.sizes.pool_rows * kv::PAGE_TOKENS,
            Bytes(per_token as u64)
        );
        let host = self.sizes.host;
        if 0 < host.rows {
            let (tokens, rule) = (host.rows * kv::PAGE_TOKENS, host.eviction.name());
            let _ = writeln!(text, "host     {} behind the pool holds {tokens} tokens; eviction {rule}", host.memory);
        }
        let lines = self.memory();
        let shown = lines.iter().map(|line| format!("{} {}", line.name, Bytes(line.bytes)));
        let (shown, total) = (shown.collect::<Vec<_>>().join(", "), Bytes(sizes::total(&self.device, &lines)));
        let cap = self.device.gpu.map_or(String::new(), |gpu| format!(" of --gpu-memory {}", Bytes(gpu.cap)));
        let _ = write!(text, "memory   {shown}; at most {total}{cap}");
        text
    }

    /// Prints the plan, loads the weights under a progress bar and starts the engine.
    pub(crate) fn start(self) -> Result<Session> {
        eprintln!("{}", self.describe());
        if let Some(warning) = self.warning().filter(|_| 0 < self.sizes.host.rows) {
            eprintln!("warning: {warning}");
        }
        let bar = progress_bar("loading", 0, "{bytes}/{total_bytes}");
        let (backend, Sizes { limits, pool_rows, host, .. }) = (&*self.device.backend, self.sizes);
        let mut decoder = Decoder::load(backend, &self.opened.checkpoint, limits, &mut |done, total| {
            bar.set_length(total);
            bar.set_position(done);
        })
        .context("the model could not be loaded")?;
        bar.finish_and_clear();
        if let Some(overlap) = self.selection_overlap {
            decoder.algorithms_mut().replace_each(|algorithm| Box::new(sparse::MadeUp::new(algorithm, overlap as f32)));
        }
        let decoder = Arc::new(decoder);
        let config = self.opened.config();
        let runtime = backend
            .runtime(&self.sizes.shape(config))
            .context("the KV pool and the workspaces could not be allocated")?;
        let row_bytes = config.geometry().row_bytes() as u64;
        let engine_config = EngineConfig {
            dram_rows: host.rows,
            max_lanes: limits.max_lanes,
            prefill_tokens: limits.prefill_tokens,
            decode_share: self.decode_share,
            prefix_cache: self.prefix_cache,
            max_queue: self.max_queue,
            unit_seconds: self.device.unit_seconds(),
            cost: self.device.cost(config),
            ..EngineConfig::new(pool_rows, row_bytes, limits.max_tokens, config.vocab_size)
        };
        let algorithms = decoder.algorithms().specs().all().to_vec();
        let opened = Arc::new(self.opened);
        let texts = Texts(opened.clone());
        let texts: TextFactory = Arc::new(move |options| texts.stream(options));
        let engine = Engine::start(runtime, decoder, algorithms, Some(texts), engine_config);
        Ok(Session { engine, opened, bundled: self.bundled, limits })
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
