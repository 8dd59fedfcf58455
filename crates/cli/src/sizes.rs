//! How long sequences may be and how much memory their KV gets, so that everything fits on the device.
//!
//! ```text
//! --gpu-memory  |-- weights, staging, hidden states, workspaces, driver --|-------- KV pool --------|
//!                            grows with the longest sequence                what is left, or less
//! ```
//! On a CPU only the KV pool has a cap.

use crate::args::ModelArgs;
use crate::device::Device;
use crate::quantity::{Bytes, TokenCount};
use anyhow::{Result, anyhow, bail, ensure};
use backend::MemoryUse;
use model::{Decoder, DecoderLimits, ModelConfig};

/// KV memory on a CPU where nobody says otherwise: the smaller of this and half of the free memory.
const KV_MEMORY_DEFAULT: u64 = 4 << 30;

/// Fewest tokens of a prefill pass.
const PREFILL_TOKENS_LEAST: usize = 512;

/// Bytes of a GPU that no plan names: every array is rounded up a little.
const ROUNDING: u64 = 1 << 20;

/// Sizes that were resolved.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sizes {
    pub(crate) limits: DecoderLimits,
    pub(crate) kv_memory: Bytes,
    pub(crate) pool_rows: usize,
}

/// What they follow from.
struct Sizing<'a> {
    args: &'a ModelArgs,
    device: &'a Device,
    config: &'a ModelConfig,
    /// Bytes of KV that were asked for; none where the pool takes what is left.
    kv_memory: Option<u64>,
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
        let sizing = Sizing { args, device, config, kv_memory };
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
        Ok(Sizes { limits: sizing.limits(max_tokens), kv_memory: Bytes(kv_memory), pool_rows })
    }
}

impl Sizing<'_> {
    fn limits(&self, max_tokens: usize) -> DecoderLimits {
        let prefill_tokens = self.args.prefill_tokens.0.min(max_tokens);
        DecoderLimits { max_lanes: usize::from(self.args.max_lanes), max_tokens, prefill_tokens }
    }

    /// The longest sequence, as far as the model goes, that the KV memory beside its plan can hold.
    fn longest(&self) -> usize {
        let is_held = |max_tokens| self.kv_memory(max_tokens).is_some_and(|kv| max_tokens <= self.tokens(kv));
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
        let rest = total(&plan(self.device, self.config, self.limits(max_tokens), 0));
        let left = gpu.cap.checked_sub(rest + ROUNDING)?;
        match self.kv_memory {
            Some(asked) => (asked <= left).then_some(asked),
            None => Some(left),
        }
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
        let lines = plan(self.device, self.config, self.limits(max_tokens), 0);
        let shown: Vec<String> = lines.iter().map(|line| format!("{} {}", line.name, Bytes(line.bytes))).collect();
        let (rest, cap) = (total(&lines), self.device.gpu.map_or(0, |gpu| gpu.cap));
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
pub(crate) fn plan(device: &Device, config: &ModelConfig, limits: DecoderLimits, pool_rows: usize) -> Vec<MemoryUse> {
    let mut lines = Decoder::plan(&*device.backend, config, limits);
    lines.extend(device.backend.runtime_plan(&config.runtime_shape(limits, pool_rows)));
    lines.extend(device.gpu.map(|gpu| MemoryUse { name: "driver and graphs", bytes: gpu.overhead }));
    lines
}

/// All lines of a plan together.
pub(crate) fn total(lines: &[MemoryUse]) -> u64 {
    lines.iter().map(|line| line.bytes).sum()
}

fn default_kv_memory() -> u64 {
    let free = free_memory().unwrap_or(2 * KV_MEMORY_DEFAULT);
    KV_MEMORY_DEFAULT.min(free / 2)
}

/// Free memory in bytes, where the system tells.
pub(crate) fn free_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
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
        let device = Device { backend: Arc::new(backend), gpu: Some(GpuMemory { cap, overhead: 10 * MIB }) };
        let sizes = Sizes::resolve(&args, &device, opened.config());
        let lines = |sizes: &Sizes| plan(&device, opened.config(), sizes.limits, sizes.pool_rows);
        let taken = sizes.as_ref().map_or(0, |sizes| total(&lines(sizes)));
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
