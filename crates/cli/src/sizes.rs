//! How long sequences may be and how much memory their KV gets, so that everything fits on the device.
//!
//! ```text
//! --gpu-memory  |-- weights, staging, hidden states, workspaces, driver --|-------- KV pool --------|
//!                            grows with the longest sequence                what is left, or less
//! ```
//! On a CPU only the KV pool has a cap. Host memory behind the pool (`--host-memory`) is counted apart from a GPU's.

use crate::args::{EvictionName, ModelArgs};
use crate::device::Device;
use crate::quantity::{Bytes, TokenCount};
use anyhow::{Result, anyhow, bail, ensure};
use backend::{MemoryUse, RuntimeShape};
use kv::{Demand, Indexing, Residence, SummaryKey};
use model::{Decoder, DecoderLimits, ModelConfig};
use sparse::{AlgorithmSpec, Specs};

/// KV memory on a CPU where nobody says otherwise: the smaller of this and half of the free memory.
const KV_MEMORY_DEFAULT: u64 = 4 << 30;

/// Fewest tokens of a prefill pass.
const PREFILL_TOKENS_LEAST: usize = 512;

/// Bytes of a GPU that no plan names: every array is rounded up a little.
const ROUNDING: u64 = 1 << 20;

/// The line of every backend's plan that is host memory, whatever the device.
const HOST_LINE: &str = "host memory for KV";

/// Sizes that were resolved.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sizes {
    pub(crate) limits: DecoderLimits,
    pub(crate) kv_memory: Bytes,
    pub(crate) pool_rows: usize,
    pub(crate) host: HostSizes,
}

/// Host memory behind the pool.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct HostSizes {
    /// As asked for; 0 for none.
    pub(crate) memory: Bytes,
    /// The rows that it holds.
    pub(crate) rows: usize,
    /// Which cached pages go first.
    pub(crate) eviction: EvictionName,
}

/// What they follow from.
struct Sizing<'a> {
    args: &'a ModelArgs,
    device: &'a Device,
    config: &'a ModelConfig,
    /// Bytes of KV that were asked for; none where the pool takes what is left.
    kv_memory: Option<u64>,
    host: HostSizes,
}

impl Sizes {
    /// Resolves what was typed.
    pub(crate) fn resolve(args: &ModelArgs, device: &Device, config: &ModelConfig) -> Result<Self> {
        ensure!(
            PREFILL_TOKENS_LEAST <= args.prefill_tokens.0,
            "--prefill-tokens {} is too low: every pass gathers what came before, use {PREFILL_TOKENS_LEAST} or more",
            args.prefill_tokens
        );
        let kv_memory = args.kv_memory.map(|bytes| bytes.0);
        let kv_memory = if device.gpu.is_some() { kv_memory } else { kv_memory.or_else(|| Some(default_kv_memory())) };
        let host = HostSizes::resolve(args, config)?;
        let sizing = Sizing { args, device, config, kv_memory, host };
        let max_tokens = match args.max_model_len {
            Some(tokens) if config.max_positions < tokens.0 => {
                bail!("--max-model-len {} is beyond the model's {} positions", tokens.0, config.max_positions)
            }
            Some(TokenCount(0..16)) => bail!("--max-model-len is 16 or more: a prompt and its answer"),
            Some(tokens) => tokens.0,
            None => sizing.longest().max(1),
        };
        let kv_memory = sizing.kv_memory(max_tokens).ok_or_else(|| sizing.too_much(max_tokens))?;
        let pool_rows = sizing.pool_rows(kv_memory);
        if sizing.tokens(kv_memory) == 0 {
            let row = Bytes(config.geometry().row_bytes() as u64);
            let kv = match (sizing.kv_memory, Bytes(kv_memory)) {
                (Some(_), kv) => format!("--kv-memory {kv}"),
                (None, kv) => format!("--gpu-memory leaves {kv} for KV, which"),
            };
            bail!("{kv} holds no sequence: a row of 8 tokens of this model takes {row}");
        }
        Ok(Sizes { limits: sizing.limits(max_tokens), kv_memory: Bytes(kv_memory), pool_rows, host })
    }

    /// What the runtime is sized for.
    pub(crate) fn shape(&self, config: &ModelConfig) -> RuntimeShape {
        self.host.shape(config, self.limits, self.pool_rows)
    }
}

impl HostSizes {
    fn resolve(args: &ModelArgs, config: &ModelConfig) -> Result<Self> {
        let (memory, row) = (args.host_memory, config.geometry().row_bytes() as u64);
        let rows = engine::pool_rows(memory.0, &config.geometry());
        ensure!(
            memory.0 == 0 || 0 < rows,
            "--host-memory {memory} holds no page: a row of 8 tokens of this model takes {}",
            Bytes(row)
        );
        // What is free may grow until it is needed; what the machine does not have never comes.
        let in_memory = args.device.host_folder.is_none();
        if let Some(total) = machine_memory("MemTotal:").filter(|total| in_memory && *total < memory.0) {
            bail!("--host-memory {memory} is more than the {} of this machine", Bytes(total));
        }
        ensure!(
            args.eviction.is_none() || 0 < rows,
            "--eviction needs --host-memory: without it every page stays in the pool"
        );
        ensure!(
            args.device.host_folder.is_none() || 0 < rows,
            "--host-folder needs --host-memory: how much is kept there"
        );
        Ok(HostSizes { memory, rows, eviction: args.eviction.unwrap_or_default() })
    }

    fn shape(&self, config: &ModelConfig, limits: DecoderLimits, pool_rows: usize) -> RuntimeShape {
        let (dram_rows, eviction) = (self.rows, self.eviction.into());
        RuntimeShape { dram_rows, eviction, ..config.runtime_shape(limits, pool_rows) }
    }
}

impl Sizing<'_> {
    fn limits(&self, max_tokens: usize) -> DecoderLimits {
        let prefill_tokens = self.args.prefill_tokens.0.min(max_tokens);
        DecoderLimits { max_lanes: usize::from(self.args.max_lanes), max_tokens, prefill_tokens }
    }

    /// The longest sequence, as far as the model goes, that the memory for KV beside its plan can hold: in the pool, or
    /// under one of the algorithms in host memory.
    fn longest(&self) -> usize {
        let in_pool = |max_tokens| self.kv_memory(max_tokens).is_some_and(|kv| max_tokens <= self.tokens(kv));
        let specs = Specs::of(self.config.geometry());
        let behind_it = |spec: &AlgorithmSpec| {
            // Shorter ones select nothing.
            let least = spec.selection().min_context;
            let longest = self.longest_that(|max_tokens| max_tokens <= least || self.fits_sparsely(spec, max_tokens));
            if least < longest { longest } else { 0 }
        };
        let host = specs.all().iter().filter(|spec| 0 < self.host.rows && spec.is_sparse()).map(behind_it).max();
        self.longest_that(in_pool).max(host.unwrap_or(0))
    }

    /// Whether a sequence fits with its working set in the pool and all else in host memory, as admission counts.
    fn fits_sparsely(&self, spec: &AlgorithmSpec, max_tokens: usize) -> bool {
        let (Some(kv_memory), Some(row_tokens)) = (self.kv_memory(max_tokens), spec.summary_row_tokens) else {
            return false;
        };
        // An algorithm's number makes no difference to what it needs.
        let indexing = Indexing { key: SummaryKey { algorithm: 0, row_tokens }, selection: spec.selection() };
        let demand = Demand::alone(max_tokens - 1, max_tokens + 1, indexing, Residence::Sparse);
        demand.pool_least() <= self.pool_rows(kv_memory) && demand.total().dram <= self.host.rows
    }

    /// The largest length up to which `is_held`.
    fn longest_that(&self, is_held: impl Fn(usize) -> bool) -> usize {
        let (mut held, mut beyond) = (0, self.config.max_positions + 1);
        while 1 < beyond - held {
            let middle = held.midpoint(beyond);
            if is_held(middle) {
                held = middle;
            } else {
                beyond = middle;
            }
        }
        held
    }

    /// Bytes for KV beside all that sequences of `max_tokens` need; none where they do not fit.
    fn kv_memory(&self, max_tokens: usize) -> Option<u64> {
        let Some(gpu) = self.device.gpu else { return self.kv_memory };
        let taken = |pool_rows| total(self.device, &self.plan(max_tokens, pool_rows));
        let left = gpu.cap.checked_sub(taken(0) + ROUNDING)?;
        // With host memory behind the pool, its rows have tags and ages beside their bytes.
        let row = self.config.geometry().row_bytes() as u64;
        let row_taken = (taken(1024) - taken(0)).div_ceil(1024);
        let left = if row_taken == row { left } else { left / row_taken * row };
        match self.kv_memory {
            Some(asked) => (asked <= left).then_some(asked),
            None => Some(left),
        }
    }

    fn plan(&self, max_tokens: usize, pool_rows: usize) -> Vec<MemoryUse> {
        let limits = self.limits(max_tokens);
        plan(self.device, self.config, limits, &self.host.shape(self.config, limits, pool_rows))
    }

    fn pool_rows(&self, kv_memory: u64) -> usize {
        engine::pool_rows(kv_memory, &self.config.geometry())
    }

    /// Tokens of the one sequence that so much KV memory can hold.
    fn tokens(&self, kv_memory: u64) -> usize {
        self.pool_rows(kv_memory).saturating_sub(2) * kv::PAGE_TOKENS
    }

    /// Says what does not fit, and what to lower.
    fn too_much(&self, max_tokens: usize) -> anyhow::Error {
        let mut lines = self.plan(max_tokens, 0);
        lines.retain(|line| line.name != HOST_LINE);
        let shown: Vec<String> = lines.iter().map(|line| format!("{} {}", line.name, Bytes(line.bytes))).collect();
        let (rest, cap) = (total(self.device, &lines), self.device.gpu.map_or(0, |gpu| gpu.cap));
        let kv = self.kv_memory.map_or(String::new(), |kv| format!(" and --kv-memory {}", Bytes(kv)));
        let lower = match self.args.max_model_len {
            _ if self.kv_memory.is_some() && rest + ROUNDING <= cap => "lower --kv-memory",
            Some(_) => "lower --max-model-len, --max-lanes or --prefill-tokens, or raise --gpu-memory",
            None => "lower --max-lanes or --prefill-tokens, or raise --gpu-memory",
        };
        let (rest, cap, shown) = (Bytes(rest), Bytes(cap), shown.join(", "));
        anyhow!("the plan takes {rest}{kv}, more than --gpu-memory {cap}: {lower} ({shown})")
    }
}

/// What will be allocated, line by line.
pub(crate) fn plan(
    device: &Device,
    config: &ModelConfig,
    limits: DecoderLimits,
    shape: &RuntimeShape,
) -> Vec<MemoryUse> {
    let mut lines = Decoder::plan(&*device.backend, config, limits);
    lines.extend(device.backend.runtime_plan(shape));
    lines.extend(device.gpu.map(|gpu| MemoryUse { name: "driver and graphs", bytes: gpu.overhead }));
    lines
}

/// The lines of a plan that the device's memory holds, together: host memory is not a GPU's, and may be a file.
pub(crate) fn total(device: &Device, lines: &[MemoryUse]) -> u64 {
    let is_elsewhere = |line: &&MemoryUse| (device.gpu.is_some() || device.host_is_file) && line.name == HOST_LINE;
    lines.iter().filter(|line| !is_elsewhere(line)).map(|line| line.bytes).sum()
}

fn default_kv_memory() -> u64 {
    let free = free_memory().unwrap_or(2 * KV_MEMORY_DEFAULT);
    KV_MEMORY_DEFAULT.min(free / 2)
}

/// Free memory in bytes, where the system tells.
pub(crate) fn free_memory() -> Option<u64> {
    machine_memory("MemAvailable:")
}

/// A line of the system's account of its memory, in bytes.
fn machine_memory(name: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with(name))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib << 10)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args;
    use crate::device::GpuMemory;
    use backend::cpu::{CpuBackend, CpuOptions};
    use model::ModelSource;
    use std::sync::Arc;

    const MIB: u64 = 1 << 20;

    /// The bundled model on a made-up GPU: the CPU, whose memory has a cap.
    fn resolve(cap: u64, args: ModelArgs) -> (Result<Sizes>, u64) {
        let opened = model::open(&ModelSource::Bundled).expect("it is in the binary");
        let backend = CpuBackend::new(CpuOptions { threads: 1, ..CpuOptions::default() }).expect("a CPU");
        let device = Device {
            backend: Arc::new(backend),
            gpu: Some(GpuMemory { cap, overhead: 10 * MIB }),
            host_is_file: false,
        };
        let sizes = Sizes::resolve(&args, &device, opened.config());
        let lines = |sizes: &Sizes| plan(&device, opened.config(), sizes.limits, &sizes.shape(opened.config()));
        let taken = sizes.as_ref().map_or(0, |sizes| total(&device, &lines(sizes)));
        (sizes, taken)
    }

    fn model_args() -> ModelArgs {
        ModelArgs { max_lanes: 4, max_model_len: Some(TokenCount(4096)), ..args::defaults() }
    }

    #[test]
    fn the_pool_gets_what_is_left() {
        let (sizes, taken) = resolve(200 * MIB, model_args());
        let sizes = sizes.expect("it fits");
        assert!((198 * MIB..200 * MIB).contains(&taken), "{taken} of 200 MiB");
        let (more, taken) = resolve(300 * MIB, model_args());
        assert_eq!(more.expect("it fits").kv_memory.0, sizes.kv_memory.0 + 100 * MIB);
        assert!(taken <= 300 * MIB, "{taken} of 300 MiB");
    }

    #[test]
    fn less_for_the_pool_where_it_is_asked_for() {
        let (sizes, taken) = resolve(200 * MIB, ModelArgs { kv_memory: Some(Bytes(50 * MIB)), ..model_args() });
        assert_eq!(sizes.expect("it fits").kv_memory, Bytes(50 * MIB));
        assert!(taken < 198 * MIB, "{taken}");
    }

    #[test]
    fn sequences_are_as_long_as_the_pool_and_their_buffers_allow() {
        let (sizes, taken) = resolve(150 * MIB, ModelArgs { max_model_len: None, ..model_args() });
        let Sizes { limits, pool_rows, .. } = sizes.expect("it fits");
        assert!(taken <= 150 * MIB, "{taken}");
        let held = (pool_rows - 2) * kv::PAGE_TOKENS;
        assert!((held - kv::PAGE_TOKENS..=held).contains(&limits.max_tokens), "{} of {held}", limits.max_tokens);
        let (sizes, _) = resolve(64 << 30, ModelArgs { max_model_len: None, ..model_args() });
        assert_eq!(sizes.expect("it fits").limits.max_tokens, 131_200, "the model's own");
    }

    #[test]
    fn host_memory_is_not_the_gpus_but_what_the_pool_needs_for_it_is() {
        let host_memory = Bytes(500 * MIB);
        let (sizes, taken) = resolve(200 * MIB, ModelArgs { host_memory, ..model_args() });
        let sizes = sizes.expect("it fits");
        assert_eq!(sizes.host.rows, 500 * 64, "a row takes 16 KiB");
        assert!((198 * MIB..=200 * MIB).contains(&taken), "{taken} of 200 MiB");
        let without = resolve(200 * MIB, model_args()).0.expect("it fits");
        assert!(sizes.pool_rows < without.pool_rows, "tags and ages take room");
    }

    #[test]
    fn sequences_may_be_longer_than_the_pool_where_host_memory_holds_their_pages() {
        let longest = |host: u64| {
            let args = ModelArgs { max_model_len: None, kv_memory: Some(Bytes(8 * MIB)), ..model_args() };
            resolve(1 << 32, ModelArgs { host_memory: Bytes(host), ..args }).0.expect("it fits").limits.max_tokens
        };
        assert_eq!(longest(0), (512 - 2) * kv::PAGE_TOKENS, "as the pool");
        assert_eq!(longest(MIB), (512 - 2) * kv::PAGE_TOKENS, "too little to change that");
        let with = longest(16 * MIB);
        assert!((8192..8192 + 256).contains(&with), "host memory, and the pool's window: {with}");
        let with = longest(128 * MIB);
        assert!((20_000..60_000).contains(&with), "summaries and cache rows fill the pool: {with}");
    }

    #[test]
    fn what_does_not_fit_is_told_with_both_sizes() {
        let check = |cap: u64, args: ModelArgs, wanted: &[&str]| {
            let error = resolve(cap, args).0.expect_err("it is too much").to_string();
            for wanted in wanted {
                assert!(error.contains(wanted), "no '{wanted}' in: {error}");
            }
        };
        let too_long = ["more than --gpu-memory 20.0 MiB: lower --max-model-len", "driver and graphs 10.0 MiB"];
        check(20 * MIB, model_args(), &too_long);
        let any = ModelArgs { max_model_len: None, ..model_args() };
        check(20 * MIB, any, &["the plan takes ", ": lower --max-lanes or --prefill-tokens"]);
        let much = ModelArgs { kv_memory: Some(Bytes(180 * MIB)), ..model_args() };
        check(200 * MIB, much, &[" and --kv-memory 180.0 MiB, more than --gpu-memory 200.0 MiB: lower --kv-memory"]);
    }
}
