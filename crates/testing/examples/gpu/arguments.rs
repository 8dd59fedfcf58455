//! What was typed, and the machine that it is to run on.

use cuda::{CudaBackend, CudaOptions};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use testing::conformance::Extent;

/// The command line.
#[derive(Clone, Debug)]
pub(crate) struct Arguments {
    /// The first word.
    pub(crate) command: String,
    /// Which GPU.
    pub(crate) device: usize,
    /// Where cuBLASLt is.
    pub(crate) cublas: Option<PathBuf>,
    /// Where results go as JSON.
    pub(crate) json: Option<PathBuf>,
    /// How many shapes.
    pub(crate) extent: Extent,
    /// Whether only the ops' suites run, no whole steps.
    pub(crate) suites: bool,
    /// Rows of the pool, as a share of a document's, where host memory has the rest.
    pub(crate) pool_share: Option<f64>,
    /// The one check that is asked for.
    pub(crate) only: Option<String>,
    /// Of a process that goes on after a lost device: the first check that is left, and what failed before.
    pub(crate) from: usize,
    /// See `from`.
    pub(crate) failed: Vec<String>,
}

/// Whether there is a GPU to test.
pub(crate) enum Machine {
    /// It works.
    Ready(String),
    /// There is none.
    WithoutGpu(String),
    /// There is one, and the driver does not run it.
    Broken(String),
}

impl Arguments {
    /// Reads the command line.
    pub(crate) fn parse(mut words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut arguments = Arguments {
            command: words.next().ok_or("a command is missing")?,
            device: 0,
            cublas: None,
            json: None,
            extent: Extent::Full,
            suites: false,
            pool_share: None,
            only: None,
            from: 0,
            failed: Vec::new(),
        };
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            let number = |text: String| text.parse().map_err(|_| format!("'{text}' is not a number"));
            match word.as_str() {
                "--device" => arguments.device = number(value()?)?,
                "--cublas" => arguments.cublas = Some(value()?.into()),
                "--json" => arguments.json = Some(value()?.into()),
                "--quick" => arguments.extent = Extent::Reduced,
                "--suites" => arguments.suites = true,
                "--pool-share" => {
                    let text = value()?;
                    let share = text.parse().map_err(|_| format!("'{text}' is not a number"))?;
                    arguments.pool_share = Some(share);
                }
                "--only" => arguments.only = Some(value()?),
                "--from" => arguments.from = number(value()?)?,
                "--failed" => arguments.failed.push(value()?),
                other => return Err(format!("unknown argument {other}")),
            }
        }
        Ok(arguments)
    }

    /// The same as words, for a process that goes on with another command.
    pub(crate) fn words(&self, command: &str) -> Vec<String> {
        let mut words = vec![command.to_string(), "--device".to_string(), self.device.to_string()];
        let path = |path: &Path| path.display().to_string();
        words.extend(self.cublas.iter().flat_map(|cublas| ["--cublas".to_string(), path(cublas)]));
        words.extend(self.json.iter().flat_map(|json| ["--json".to_string(), path(json)]));
        if self.extent == Extent::Reduced {
            words.push("--quick".to_string());
        }
        if self.suites {
            words.push("--suites".to_string());
        }
        words.extend(self.only.iter().flat_map(|only| ["--only".to_string(), only.clone()]));
        words
    }

    /// Whether there is a GPU, and whether it works.
    pub(crate) fn machine(&self) -> Machine {
        let found = cuda::devices().map_err(|error| error.to_string());
        match found.and_then(|all| all.into_iter().nth(self.device).ok_or(format!("there is no GPU {}", self.device))) {
            Ok(gpu) => {
                let (major, minor) = gpu.compute;
                let memory = format!("{:.1} of {:.1} GiB free", gib(gpu.free_bytes), gib(gpu.total_bytes));
                Machine::Ready(format!("{}, compute {major}.{minor}, {memory}, {}, {}", gpu.name, gpu.link, gpu.driver))
            }
            Err(why) if has_gpu() => Machine::Broken(why),
            Err(why) => Machine::WithoutGpu(why),
        }
    }

    /// A backend; `cap` in bytes.
    pub(crate) fn backend(&self, capture: bool, cap: Option<u64>) -> Arc<CudaBackend> {
        let (device, cublas) = (self.device, self.cublas.clone());
        let options = CudaOptions { device, gpu_memory: cap, capture, cublas };
        CudaBackend::new(options).unwrap_or_else(|error| panic!("{error}"))
    }

    /// Writes results where they were asked for.
    pub(crate) fn write(&self, results: &Value) {
        if let Some(path) = &self.json {
            let text = format!("{results:#}\n");
            std::fs::write(path, text).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
        }
    }
}

/// Bytes in GiB.
pub(crate) fn gib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 30)
}

/// Whether the system shows an NVIDIA GPU, whatever the driver says.
fn has_gpu() -> bool {
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    let devices = std::fs::read_dir("/sys/bus/pci/devices").into_iter().flatten().flatten().map(|entry| entry.path());
    let nvidia = |device: &PathBuf| {
        let (vendor, class) = (read(device.join("vendor")), read(device.join("class")));
        vendor.trim() == "0x10de" && class.starts_with("0x03")
    };
    Path::new("/dev/nvidia0").exists() || { devices }.any(|device| nvidia(&device))
}
