//! `cargo xtask kernels`: every CUDA kernel for every architecture, the crates with the feature `cuda` under clippy,
//! and what the assembler says of registers. No GPU is needed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use crate::toolkit::{self, Outcome};

/// Crates with the feature.
const CRATES: [&str; 3] = ["spindle-cuda", "spindle-cli", "spindle-testing"];

/// Kernels that most of the time goes to, in whose inner loops every register counts.
const HOT: [&str; 5] = ["attend_", "prefill_attend_", "gemm_", "score_codes_", "score_dot_"];

/// Architectures on which hot kernels must keep every register.
const STRICT: [&str; 2] = ["sm_80", TUNED];

/// Bytes that a hot kernel may store elsewhere: kernels are not tuned for newer architectures yet.
const HOT_BYTES_ELSEWHERE: usize = 64;

/// Bytes that any other kernel may store. `estimate`, `rotate_code` and `sample` do store some, up to 168; on sm_90a a
/// reload of `rotate_code_128` lies in a loop, and where those of `estimate` on sm_80 lie nobody has looked.
const OTHER_BYTES: usize = 192;

/// The architecture whose registers are shown.
const TUNED: &str = "sm_90a";

/// What the assembler says of a kernel on an architecture.
#[derive(Debug, PartialEq)]
struct Usage {
    kernel: String,
    architecture: String,
    registers: usize,
    /// Registers that did not fit, written to memory and read back.
    stored_bytes: usize,
    loaded_bytes: usize,
}

/// Runs the stage; with neither a compiler nor a package registry it says so and passes.
pub(crate) fn run(args: &[String]) -> Result<()> {
    if !args.is_empty() {
        bail!("`cargo xtask kernels` takes no arguments, got {args:?}");
    }
    let is_given = ["NVCC", "CUDA_HOME"].into_iter().any(|name| std::env::var_os(name).is_some());
    if !is_given && let Outcome::Unreachable(why) = toolkit::install()? {
        println!(
            "skipped: the package registry cannot be reached, so there is no nvcc to build the kernels with\n{why}"
        );
        return Ok(());
    }
    let reports = reports(&build()?)?;
    let usages: Vec<Usage> = reports.iter().flat_map(|(_, report)| usages(report)).collect();
    ensure!(!usages.is_empty(), "no kernel in {} reports: nothing was checked", reports.len());
    show(&usages);
    let out_of_registers: Vec<String> = usages.iter().filter_map(complaint).collect();
    if !out_of_registers.is_empty() {
        bail!("kernels keep registers in memory:\n{}", out_of_registers.join("\n"));
    }
    Ok(())
}

/// Clippy over the crates with the feature; gives the folder with what nvcc made.
fn build() -> Result<PathBuf> {
    let mut cargo = Command::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()));
    cargo.current_dir(crate::root()).env_remove("SPINDLE_CUDA_ARCHITECTURES").stdout(Stdio::piped());
    cargo.args(["clippy", "--all-targets", "--features", "cuda", "--message-format", "json-render-diagnostics"]);
    CRATES.iter().for_each(|name| {
        cargo.args(["--package", name]);
    });
    cargo.args(["--", "-D", "warnings"]);
    let output = cargo.spawn().context("Cargo does not start")?.wait_with_output().context("Cargo does not end")?;
    ensure!(output.status.success(), "clippy with the feature `cuda` ended with {}", output.status);
    let messages = String::from_utf8_lossy(&output.stdout);
    messages.lines().find_map(out_folder).context("Cargo did not say where it built spindle-cuda")
}

/// The build script's folder, if the line is Cargo's message of it.
fn out_folder(message: &str) -> Option<PathBuf> {
    let is_ours = message.contains("\"reason\":\"build-script-executed\"") && message.contains("crates/cuda");
    let (_, rest) = message.split_once("\"out_dir\":\"").filter(|_| is_ours)?;
    Some(PathBuf::from(rest.split('"').next()?))
}

/// The assembler's reports, one a kernel file, by name.
fn reports(folder: &Path) -> Result<Vec<(String, String)>> {
    let mut reports = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))? {
        let path = entry?.path();
        let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
        let source = crate::root().join(format!("crates/cuda/kernels/{name}.cu"));
        if path.extension().is_some_and(|extension| extension == "ptxas") && source.is_file() {
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
            reports.push((name, text));
        }
    }
    reports.sort();
    Ok(reports)
}

/// Reads a report of `ptxas -v`.
fn usages(report: &str) -> Vec<Usage> {
    let mut usages: Vec<Usage> = Vec::new();
    for line in report.lines() {
        let number_before = |words: &str| -> Option<usize> {
            let (before, _) = line.split_once(words)?;
            before.rsplit([' ', ',']).find(|word| !word.is_empty())?.parse().ok()
        };
        if line.contains("Compiling entry function") {
            let quoted: Vec<&str> = line.split('\'').collect();
            if let [_, kernel, _, architecture, ..] = quoted[..] {
                let (kernel, architecture) = (kernel.to_owned(), architecture.to_owned());
                usages.push(Usage { kernel, architecture, registers: 0, stored_bytes: 0, loaded_bytes: 0 });
            }
        } else if let Some(usage) = usages.last_mut() {
            // A kernel's own, and those of functions that were not inlined.
            usage.stored_bytes += number_before(" bytes spill stores").unwrap_or(0);
            usage.loaded_bytes += number_before(" bytes spill loads").unwrap_or(0);
            usage.registers = number_before(" registers").unwrap_or(0).max(usage.registers);
        }
    }
    usages
}

fn complaint(usage: &Usage) -> Option<String> {
    let Usage { kernel, architecture, registers, stored_bytes, loaded_bytes } = usage;
    let allowed = match (is_hot(kernel), STRICT.contains(&architecture.as_str())) {
        (true, true) => 0,
        (true, false) => HOT_BYTES_ELSEWHERE,
        (false, _) => OTHER_BYTES,
    };
    let fits = *stored_bytes <= allowed;
    let told = || format!("  {kernel} on {architecture}: {stored_bytes} bytes stored, {loaded_bytes} loaded");
    (!fits).then(|| format!("{}, {registers} registers", told()))
}

fn is_hot(kernel: &str) -> bool {
    HOT.iter().any(|name| kernel.starts_with(name))
}

fn show(usages: &[Usage]) {
    let architectures: BTreeSet<&str> = usages.iter().map(|usage| usage.architecture.as_str()).collect();
    let kernels: BTreeSet<&str> = usages.iter().map(|usage| usage.kernel.as_str()).collect();
    let all: Vec<&str> = architectures.into_iter().collect();
    println!("{} kernels for {}; registers on {TUNED}:", kernels.len(), all.join(", "));
    for usage in usages.iter().filter(|usage| is_hot(&usage.kernel) && usage.architecture == TUNED) {
        println!("  {:<28}{:>4}", usage.kernel, usage.registers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'attend_128' for 'sm_90a'
ptxas info    : Function properties for attend_128
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 181 registers, used 1 barriers, 384 bytes smem
ptxas info    : Compile time = 206.995 ms
ptxas info    : Compiling entry function 'gemm_8' for 'sm_80'
ptxas info    : Function properties for gemm_8
    24 bytes stack frame, 20 bytes spill stores, 36 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers
";

    #[test]
    fn a_report_is_read_kernel_by_kernel() {
        let usages = usages(REPORT);
        let seen: Vec<_> = usages.iter().map(|usage| (usage.kernel.as_str(), usage.registers)).collect();
        assert_eq!(seen, [("attend_128", 181), ("gemm_8", 255)]);
        let complaints: Vec<String> = usages.iter().filter_map(complaint).collect();
        assert_eq!(complaints, ["  gemm_8 on sm_80: 20 bytes stored, 36 loaded, 255 registers"]);
    }

    #[test]
    fn cargo_says_where_it_built() {
        let message = |reason: &str, package: &str| {
            format!(
                "{{\"reason\":\"{reason}\",\"package_id\":\"path+file:///a/{package}#0.1.0\",\"out_dir\":\"/t/out\"}}"
            )
        };
        assert_eq!(out_folder(&message("build-script-executed", "crates/cuda")), Some(PathBuf::from("/t/out")));
        assert_eq!(out_folder(&message("build-script-executed", "crates/other")), None);
        assert_eq!(out_folder(&message("compiler-artifact", "crates/cuda")), None);
    }
}
