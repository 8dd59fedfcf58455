//! `spindle info`: what this binary and machine have, and a model's memory plan. Reads headers, loads nothing.

use crate::args::InfoArgs;
use crate::attention::Attention;
use crate::measured;
use crate::output::{line, print_json};
use crate::quantity::Bytes;
use crate::session::{Plan, free_memory};
use anyhow::Result;
use backend::Backend;
use backend::cpu::Isa;
use serde_json::json;

/// Prints it.
pub(crate) fn info(args: &InfoArgs) -> Result<()> {
    let plan = Plan::resolve(&args.model)?;
    let attention = Attention::of(&plan.specs, &args.attention)?;
    let warning = measured::warning(&attention);
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    if args.json {
        return print_json(&as_json(&plan, cores, warning));
    }
    line(&format!("spindle  {}", env!("CARGO_PKG_VERSION")))?;
    let free = free_memory().map_or("unknown".to_string(), |bytes| Bytes(bytes).to_string());
    line(&format!("machine  {cores} cores, {free} memory free, kernels for {}", Isa::detect().name()))?;
    line(&plan.describe())?;
    line("")?;
    let row = |name: &str, bytes: u64| line(&format!("  {name:<24} {:>12}", Bytes(bytes).to_string()));
    for used in plan.memory() {
        row(used.name, used.bytes)?;
    }
    let total: u64 = plan.memory().iter().map(|used| used.bytes).sum();
    row("at most", total)?;
    if let Some(warning) = warning {
        line(&format!("warning: {warning}"))?;
    }
    match free_memory().filter(|free| *free < total) {
        Some(free) => {
            let free = Bytes(free);
            line(&format!("warning: that is more than the {free} free; lower --kv-memory or --max-model-len"))
        }
        None => Ok(()),
    }
}

fn as_json(plan: &Plan, cores: usize, warning: Option<String>) -> serde_json::Value {
    let config = plan.opened.config();
    let memory: serde_json::Map<_, _> =
        plan.memory().into_iter().map(|line| (line.name.to_string(), json!(line.bytes))).collect();
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "machine": {"cores": cores, "free_memory_bytes": free_memory(), "instruction_set": Isa::detect().name()},
        "backend": plan.backend.info().kind,
        "model": {
            "name": config.name, "architecture": config.architecture.name(), "layers": config.layers,
            "hidden": config.hidden, "q_heads": config.q_heads, "kv_heads": config.kv_heads,
            "head_dim": config.head_dim, "vocab_size": config.vocab_size, "max_positions": config.max_positions,
        },
        "max_model_len": plan.limits.max_tokens,
        "kv_bytes_per_token": config.geometry().row_bytes() / kv::PAGE_TOKENS,
        "pool_rows": plan.pool_rows,
        "memory_bytes": memory,
        "warning": warning,
    })
}
