//! `spindle info`: what this binary and machine have, and a model's memory plan. Reads headers, loads nothing.

use crate::args::InfoArgs;
use crate::attention::Attention;
use crate::device;
use crate::measured;
use crate::output::{line, print_json};
use crate::quantity::Bytes;
use crate::session::Plan;
use crate::sizes::{free_memory, total};
use anyhow::Result;
use backend::cpu::Isa;
use serde_json::{Value, json};

/// Prints it.
pub(crate) fn info(args: &InfoArgs) -> Result<()> {
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    if !args.json {
        // A model that does not fit needs these as much as one that does.
        print_machine(cores)?;
    }
    let plan = Plan::resolve(&args.model)?;
    let attention = Attention::of(&plan.specs, &args.attention)?;
    let warning = measured::warning(&attention);
    if args.json {
        return print_json(&as_json(&plan, cores, warning));
    }
    line(&plan.describe())?;
    line("")?;
    let row = |name: &str, bytes: u64| line(&format!("  {name:<24} {:>12}", Bytes(bytes).to_string()));
    let memory = plan.memory();
    for used in &memory {
        row(used.name, used.bytes)?;
    }
    row("at most", total(&plan.device, &memory))?;
    warning.into_iter().chain(plan.warning()).try_for_each(|warning| line(&format!("warning: {warning}")))
}

fn print_machine(cores: usize) -> Result<()> {
    line(&format!("spindle  {}, {}", env!("CARGO_PKG_VERSION"), built_with()))?;
    let free = free_memory().map_or("unknown".to_string(), |bytes| Bytes(bytes).to_string());
    line(&format!("machine  {cores} cores, {free} memory free, kernels for {}", Isa::detect().name()))?;
    if device::architectures().is_none() {
        return Ok(());
    }
    match device::gpus() {
        Ok(gpus) if gpus.is_empty() => line("gpu      none"),
        Ok(gpus) => gpus.iter().try_for_each(|gpu| line(&format!("gpu      {gpu}"))),
        Err(error) => line(&format!("gpu      none that can be used: {error:#}")),
    }
}

fn built_with() -> String {
    match device::architectures() {
        Some(architectures) => format!("built with CUDA kernels for sm_{}", architectures.replace(',', ", sm_")),
        None => "built without CUDA".to_string(),
    }
}

fn gpus_as_json() -> Value {
    let one = |gpu: &device::Gpu| {
        json!({
            "index": gpu.index, "name": gpu.name, "compute_capability": format!("{}.{}", gpu.compute.0, gpu.compute.1),
            "free_bytes": gpu.free.0, "total_bytes": gpu.total.0, "link": gpu.link, "driver": gpu.driver,
        })
    };
    match device::gpus() {
        Ok(gpus) => json!({"devices": gpus.iter().map(one).collect::<Vec<_>>(), "error": null}),
        Err(error) => json!({"devices": [], "error": format!("{error:#}")}),
    }
}

fn as_json(plan: &Plan, cores: usize, warning: Option<String>) -> Value {
    let config = plan.opened.config();
    let memory: serde_json::Map<_, _> =
        plan.memory().into_iter().map(|line| (line.name.to_string(), json!(line.bytes))).collect();
    let architectures = device::architectures().map(|all| all.split(',').collect::<Vec<_>>());
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "built_with": {"cuda": architectures.is_some(), "cuda_architectures": architectures},
        "machine": {"cores": cores, "free_memory_bytes": free_memory(), "instruction_set": Isa::detect().name()},
        "gpu": gpus_as_json(),
        "backend": plan.device.backend.info().kind,
        "model": {
            "name": config.name, "architecture": config.architecture.name(), "layers": config.layers,
            "hidden": config.hidden, "q_heads": config.q_heads, "kv_heads": config.kv_heads,
            "head_dim": config.head_dim, "vocab_size": config.vocab_size, "max_positions": config.max_positions,
            "weights": plan.opened.checkpoint.kind(),
        },
        "max_model_len": plan.sizes.limits.max_tokens,
        "kv_bytes_per_token": config.geometry().row_bytes() / kv::PAGE_TOKENS,
        "pool_rows": plan.sizes.pool_rows,
        "host_memory_bytes": plan.sizes.host.memory.0,
        "host_rows": plan.sizes.host.rows,
        "eviction": plan.sizes.host.eviction.name(),
        "memory_bytes": memory,
        "gpu_memory_bytes": plan.device.gpu.map(|gpu| gpu.cap),
        "warning": warning,
    })
}
