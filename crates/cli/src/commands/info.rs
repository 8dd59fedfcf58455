//! `spindle info`: what this binary and machine have, and a model's memory plan. Reads headers, loads nothing.

use crate::args::InfoArgs;
use crate::quantity::Bytes;
use crate::session::{Plan, free_memory};
use anyhow::Result;
use backend::Backend;
use backend::cpu::Isa;
use serde_json::json;

/// Prints it.
pub(crate) fn info(args: &InfoArgs) -> Result<()> {
    let plan = Plan::resolve(&args.model)?;
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    if args.json {
        println!("{:#}", as_json(&plan, cores));
        return Ok(());
    }
    println!("spindle  {}", env!("CARGO_PKG_VERSION"));
    let free = free_memory().map_or("unknown".to_string(), |bytes| Bytes(bytes).to_string());
    println!("machine  {cores} cores, {free} memory free, kernels for {}", Isa::detect().name());
    println!("{}", plan.describe());
    println!();
    for line in plan.memory() {
        println!("  {:<24} {:>12}", line.name, Bytes(line.bytes).to_string());
    }
    let total: u64 = plan.memory().iter().map(|line| line.bytes).sum();
    println!("  {:<24} {:>12}", "at most", Bytes(total).to_string());
    if let Some(free) = free_memory().filter(|free| *free < total) {
        println!("warning: that is more than the {} free; lower --kv-memory or --max-model-len", Bytes(free));
    }
    Ok(())
}

fn as_json(plan: &Plan, cores: usize) -> serde_json::Value {
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
    })
}
