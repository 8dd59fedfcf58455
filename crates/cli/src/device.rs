//! Which device runs the model: the only file that names concrete backends.

use crate::args::DeviceArgs;
use crate::quantity::Bytes;
use anyhow::{Context, Result, bail, ensure};
use backend::Backend;
use backend::cpu::{CpuBackend, CpuOptions};
use engine::CostModel;
use model::ModelConfig;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// `--device`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceName {
    /// The processor.
    Cpu,
    /// An NVIDIA GPU, by its number.
    Cuda(usize),
}

/// A device that was opened.
pub(crate) struct Device {
    pub(crate) backend: Arc<dyn Backend>,
    /// Of a GPU; on a CPU only the KV pool has a cap.
    pub(crate) gpu: Option<GpuMemory>,
    /// Whether host memory behind the pool is a file.
    pub(crate) host_is_file: bool,
}

/// What may be allocated on a GPU.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GpuMemory {
    /// All of it.
    pub(crate) cap: u64,
    /// What the driver, the kernels and the graphs take of that.
    pub(crate) overhead: u64,
}

/// A GPU of this machine.
pub(crate) struct Gpu {
    pub(crate) index: usize,
    pub(crate) name: String,
    /// Compute capability.
    pub(crate) compute: (i32, i32),
    pub(crate) free: Bytes,
    pub(crate) total: Bytes,
    /// How it is connected to the host.
    pub(crate) link: String,
    pub(crate) driver: String,
}

impl Device {
    /// Opens the one that was asked for.
    pub(crate) fn open(args: &DeviceArgs) -> Result<Device> {
        match args.device {
            DeviceName::Cpu => {
                ensure!(args.gpu_memory.is_none(), "--gpu-memory needs --device cuda");
                let threads = args.threads.map_or(CpuOptions::default().threads, usize::from);
                let mut backend = CpuBackend::new(CpuOptions { threads, ..CpuOptions::default() })?;
                if let Some(folder) = &args.host_folder {
                    ensure!(folder.is_dir(), "--host-folder {}: there is no such folder", folder.display());
                    backend = backend.with_host_folder(folder.clone());
                }
                Ok(Device { backend: Arc::new(backend), gpu: None, host_is_file: args.host_folder.is_some() })
            }
            DeviceName::Cuda(_) if args.host_folder.is_some() => {
                bail!("--host-folder is for --device cpu: a GPU fetches from memory alone")
            }
            DeviceName::Cuda(index) => gpu::open(index, args).with_context(|| format!("--device {}", args.device)),
        }
    }

    /// Seconds that a prefill unit should take.
    pub(crate) fn unit_seconds(&self) -> f64 {
        if self.gpu.is_some() { 0.010 } else { 0.050 }
    }

    /// The first guess of what prefill costs.
    pub(crate) fn cost(&self, config: &ModelConfig) -> CostModel {
        let guess = if self.gpu.is_some() { CostModel::gpu } else { CostModel::conservative };
        guess(config.layer_parameters(), config.q_columns())
    }
}

/// The GPU architectures that this binary has kernels for; none where it was built without CUDA.
pub(crate) fn architectures() -> Option<&'static str> {
    gpu::architectures()
}

/// The GPUs of this machine.
pub(crate) fn gpus() -> Result<Vec<Gpu>> {
    gpu::list()
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("'{text}' is not a device; write cpu, cuda, or cuda:1 for the second GPU");
        match text.split_once(':') {
            None if text == "cpu" => Ok(DeviceName::Cpu),
            None if text == "cuda" => Ok(DeviceName::Cuda(0)),
            Some(("cuda", index)) => index.parse().map(DeviceName::Cuda).map_err(|_| wrong()),
            _ => Err(wrong()),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeviceName::Cpu => write!(f, "cpu"),
            DeviceName::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

impl fmt::Display for Gpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Gpu { index, name, compute: (major, minor), free, total, link, driver } = self;
        write!(f, "cuda:{index} {name}, compute {major}.{minor}, {free} of {total} free, {link}, driver {driver}")
    }
}

#[cfg(feature = "cuda")]
mod gpu {
    use super::{Bytes, Device, DeviceArgs, Gpu, GpuMemory, Result};
    use cuda::{CudaBackend, CudaOptions};

    pub(super) fn open(device: usize, args: &DeviceArgs) -> Result<Device> {
        let gpu_memory = args.gpu_memory.map(|bytes| bytes.0);
        let options = CudaOptions { device, gpu_memory, capture: true, cublas: args.cublas.clone() };
        let backend = CudaBackend::new(options)?;
        let gpu = GpuMemory { cap: backend.cap(), overhead: backend.overhead_bytes() };
        Ok(Device { backend, gpu: Some(gpu), host_is_file: false })
    }

    pub(super) fn architectures() -> Option<&'static str> {
        Some(cuda::architectures())
    }

    pub(super) fn list() -> Result<Vec<Gpu>> {
        let gpu = |found: cuda::DeviceSummary| Gpu {
            index: found.index,
            name: found.name,
            compute: found.compute,
            free: Bytes(found.free_bytes),
            total: Bytes(found.total_bytes),
            link: found.link,
            driver: found.driver,
        };
        Ok(cuda::devices()?.into_iter().map(gpu).collect())
    }
}

#[cfg(not(feature = "cuda"))]
mod gpu {
    use super::{Device, DeviceArgs, Gpu, Result};

    const WITHOUT: &str = "this binary was built without CUDA; `cargo build --release --features cuda` builds it with \
                           (`cargo xtask cuda-toolkit` installs the compiler for the kernels)";

    pub(super) fn open(_: usize, _: &DeviceArgs) -> Result<Device> {
        Err(anyhow::anyhow!(WITHOUT))
    }

    pub(super) fn architectures() -> Option<&'static str> {
        None
    }

    pub(super) fn list() -> Result<Vec<Gpu>> {
        Err(anyhow::anyhow!(WITHOUT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_names_read_back() {
        let check = |text: &str, device| assert_eq!(text.parse(), Ok(device), "{text}");
        check("cpu", DeviceName::Cpu);
        check("cuda", DeviceName::Cuda(0));
        check("cuda:3", DeviceName::Cuda(3));
        for wrong in ["", "gpu", "cuda:", "cuda:-1", "cpu:0", "CUDA"] {
            assert!(wrong.parse::<DeviceName>().is_err(), "{wrong}");
        }
        assert_eq!(DeviceName::Cuda(1).to_string(), "cuda:1");
    }
}
