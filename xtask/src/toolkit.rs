//! `cargo xtask cuda-toolkit`: the compiler of CUDA kernels from PyPI, without a CUDA installation.
//!
//! `target/cuda-toolkit/nvcc` calls it, which `crates/cuda/build.rs` looks for.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail};

/// Machines that run the kernels have driver 580: a newer compiler's PTX would not load there.
const PACKAGES: &str = "cuda-toolkit[nvcc,crt,nvvm,cudart,cccl]==13.0.2";

/// What that compiler says of itself.
const RELEASE: &str = "release 13.0";

/// How the installation ended.
#[derive(Debug, PartialEq)]
pub(crate) enum Outcome {
    /// The compiler is there.
    Ready(PathBuf),
    /// No package registry answers; what `pip` said.
    Unreachable(String),
}

/// The command: not to reach the registry is an error.
pub(crate) fn run(args: &[String]) -> Result<()> {
    if !args.is_empty() {
        bail!("`cargo xtask cuda-toolkit` takes no arguments, got {args:?}");
    }
    match install()? {
        Outcome::Ready(nvcc) => println!("nvcc 13.0: {}", nvcc.display()),
        Outcome::Unreachable(why) => bail!(
            "the package registry cannot be reached, so {PACKAGES} was not installed: set PIP_INDEX_URL to a mirror, \
             or NVCC to an nvcc 13.0 that you have\n{why}"
        ),
    }
    Ok(())
}

/// Installs the compiler, unless it is there.
pub(crate) fn install() -> Result<Outcome> {
    let folder = crate::root().join("target/cuda-toolkit");
    let nvcc = folder.join("nvcc");
    if works(&nvcc) {
        return Ok(Outcome::Ready(nvcc));
    }
    let venv = folder.join("venv");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    make_venv(&venv)?;
    let mut pip = Command::new(venv.join("bin/python"));
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "2", PACKAGES]);
    let installed = pip.output().context("the virtual environment's Python does not start")?;
    if !installed.status.success() {
        let said = String::from_utf8_lossy(&installed.stderr).into_owned();
        if is_unreachable(&said) {
            return Ok(Outcome::Unreachable(said));
        }
        bail!("pip cannot install {PACKAGES}:\n{said}");
    }
    let found = compiler(&venv)?;
    write_caller(&found, &nvcc)?;
    if !works(&nvcc) {
        bail!("{} does not run, or is not {RELEASE}: remove {} and try again", found.display(), folder.display());
    }
    Ok(Outcome::Ready(nvcc))
}

/// Whether there is a compiler of the right release.
fn works(nvcc: &Path) -> bool {
    let version = Command::new(nvcc).arg("--version").output();
    version.is_ok_and(|said| said.status.success() && String::from_utf8_lossy(&said.stdout).contains(RELEASE))
}

fn make_venv(venv: &Path) -> Result<()> {
    let made = Command::new("python3").args(["-m", "venv", "--clear"]).arg(venv).output().context(
        "python3 does not start; it installs nvcc from PyPI (on Debian and Ubuntu: apt-get install python3-venv)",
    )?;
    if !made.status.success() {
        let said = said(&made);
        bail!(
            "python3 cannot make a virtual environment (on Debian and Ubuntu: apt-get install python3-venv):\n{said}"
        );
    }
    Ok(())
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Where the wheels put it: `lib/pythonX.Y/site-packages/nvidia/cu13/bin/nvcc`.
fn compiler(venv: &Path) -> Result<PathBuf> {
    let library = venv.join("lib");
    let pythons = fs::read_dir(&library).with_context(|| format!("cannot read {}", library.display()))?;
    let places = pythons.filter_map(|entry| Some(entry.ok()?.path().join("site-packages/nvidia/cu13/bin/nvcc")));
    let missing = || format!("no site-packages/nvidia/cu13/bin/nvcc below {}", library.display());
    { places }.find(|place| place.is_file()).with_context(missing)
}

/// Writes a script that calls the compiler: called through a link, nvcc does not find its own headers.
fn write_caller(compiler: &Path, script: &Path) -> Result<()> {
    let folder = script.parent().context("the script lies in a folder")?;
    let place = compiler.strip_prefix(folder).context("the compiler lies beside the script")?;
    let text = format!("#!/bin/sh\nexec \"$(dirname \"$0\")/{}\" \"$@\"\n", place.display());
    let put = || -> std::io::Result<()> {
        // Never through a link that may lie there.
        let fresh = folder.join("nvcc.new");
        fs::write(&fresh, text)?;
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755))?;
        fs::rename(&fresh, script)
    };
    put().with_context(|| format!("cannot write {}", script.display()))
}

/// Whether `pip` failed for want of a registry, and not for want of a package.
fn is_unreachable(said: &str) -> bool {
    let signs = ["Retrying (Retry(", "Max retries exceeded", "ConnectionError", "ProxyError", "ConnectTimeout"];
    signs.iter().any(|sign| said.contains(sign))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_that_does_not_answer_is_told_from_a_package_that_is_not_there() {
        let absent = "ERROR: Could not find a version that satisfies the requirement cuda-toolkit==13.0.2\n\
                      ERROR: No matching distribution found for cuda-toolkit==13.0.2\n";
        let offline = "WARNING: Retrying (Retry(total=1, connect=None)) after connection broken by \
                       'NewConnectionError(...: Failed to establish a new connection)': /simple/cuda-toolkit/\n";
        assert!(!is_unreachable(absent));
        assert!(is_unreachable(&format!("{offline}{absent}")));
    }
}
