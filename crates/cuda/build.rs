//! Compiles every kernel file to a fatbin (feature `cuda`), for all architectures that the binary is to run on.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::{env, fs, thread};

/// Machine code for these, and PTX of the last one for what comes after it.
const ARCHITECTURES: &str = "80,90a,100,120";

fn main() -> ExitCode {
    println!("cargo:rerun-if-changed=build.rs");
    if env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return ExitCode::SUCCESS;
    }
    match build() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

fn build() -> Result<(), String> {
    for name in ["NVCC", "CUDA_HOME", "SPINDLE_CUDA_ARCHITECTURES"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    println!("cargo:rerun-if-changed=kernels");
    let nvcc = nvcc()?;
    let architectures = env::var("SPINDLE_CUDA_ARCHITECTURES").unwrap_or_else(|_| ARCHITECTURES.to_string());
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    let mut files: Vec<PathBuf> = fs::read_dir("kernels")
        .map_err(|error| format!("kernels: {error}"))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "cu"))
        .collect();
    files.sort();
    println!("cargo:rustc-env=SPINDLE_CUDA_ARCHITECTURES={architectures}");
    // Two at a time: each compiler runs one thread.
    for pair in files.chunks(2) {
        thread::scope(|scope| {
            let compiling: Vec<_> =
                pair.iter().map(|file| scope.spawn(|| compile(&nvcc, &architectures, file, &out))).collect();
            compiling.into_iter().try_for_each(|one| one.join().map_err(|_| "a thread panicked".to_string())?)
        })?;
    }
    Ok(())
}

/// Compiles one file, unless its fatbin is newer than every source.
fn compile(nvcc: &Path, architectures: &str, file: &Path, out: &Path) -> Result<(), String> {
    let name = file.file_stem().and_then(|name| name.to_str()).ok_or("a kernel file without a name")?;
    let (fatbin, stamp) = (out.join(format!("{name}.fatbin")), out.join(format!("{name}.stamp")));
    let mut command = Command::new(nvcc);
    command.args(["--fatbin", "-std=c++17", "-O3", "-Xfatbin", "-compress-all"]);
    for architecture in architectures.split(',') {
        command.arg(format!("-gencode=arch=compute_{architecture},code=sm_{architecture}"));
    }
    let last = architectures.rsplit(',').next().unwrap_or_default();
    if !last.ends_with('a') {
        command.arg(format!("-gencode=arch=compute_{last},code=compute_{last}"));
    }
    command.args(["-Xptxas", "-v", "-o"]).arg(&fatbin).arg(file);
    // Who compiled it and how; gone while a compiler writes.
    let how = format!("{command:?}");
    if fs::read_to_string(&stamp).is_ok_and(|made| made == how) && is_newer(&fatbin, file) {
        return Ok(());
    }
    let _ = fs::remove_file(&stamp);
    let output = command.output().map_err(|error| format!("{}: {error}", nvcc.display()))?;
    let report = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        return Err(format!("{} does not compile:\n{report}", file.display()));
    }
    fs::write(out.join(format!("{name}.ptxas")), report.as_bytes()).map_err(|error| error.to_string())?;
    fs::write(stamp, how).map_err(|error| error.to_string())
}

fn is_newer(made: &Path, source: &Path) -> bool {
    let time = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    let headers = fs::read_dir("kernels").into_iter().flatten().filter_map(|entry| entry.ok().map(|e| e.path()));
    let headers = headers.filter(|path| path.extension().is_some_and(|extension| extension == "cuh"));
    let Some(made) = time(made) else { return false };
    headers.chain([source.to_path_buf()]).all(|source| time(&source).is_some_and(|source| source < made))
}

/// `NVCC`, the path, `CUDA_HOME`, or what `cargo xtask cuda-toolkit` installed.
fn nvcc() -> Result<PathBuf, String> {
    let path = env::var_os("PATH").unwrap_or_default();
    let toolkit = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/cuda-toolkit/nvcc");
    let named = env::var_os("NVCC").map(PathBuf::from);
    let home = env::var_os("CUDA_HOME").map(|home| Path::new(&home).join("bin/nvcc"));
    let on_path = env::split_paths(&path).map(|folder| folder.join("nvcc"));
    let mut places = named.into_iter().chain(home).chain([toolkit]).chain(on_path);
    places.find(|place| place.is_file()).ok_or_else(|| {
        "the feature `cuda` needs nvcc 13.0 (NVCC, CUDA_HOME, PATH): `cargo xtask cuda-toolkit` installs it".to_string()
    })
}
