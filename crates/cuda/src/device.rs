//! A GPU as a [`Backend`]: memory and weights.

use crate::cublas::Cublas;
use crate::driver::{Context, Event, Stream, check};
use crate::gemm;
use crate::kernels::{ARCHITECTURES, Kernels};
use crate::loader::Loader;
use crate::memory::{Array, Budget};
use crate::runtime::{CudaRuntime, DeviceBuffer, Vector, plan};
use backend::fuse::check_rotation;
use backend::{
    Backend, BackendError, Buffer, DeviceInfo, MemoryUse, PrefillForm, Runtime, RuntimeShape, Weight, WeightPart,
    WeightRole,
};
use cudarc::driver::sys;
use cudarc::driver::sys::CUdevice_attribute as Attribute;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// Bytes of device memory that the driver takes for itself, kernels and graphs: not ours to allocate, but counted.
const OVERHEAD_BYTES: u64 = 1 << 30;

/// Share of the device's memory where nobody says otherwise, in percent.
const MEMORY_PERCENT: u64 = 90;

/// The oldest driver that runs the embedded kernels: CUDA 13.0.
const DRIVER_LEAST: i32 = 13_000;

/// What a CUDA backend is made of.
#[derive(Clone, Debug)]
pub struct CudaOptions {
    /// Which GPU, as the driver counts them.
    pub device: usize,
    /// Cap of everything on the device, in bytes; 90 % of its memory where `None`.
    pub gpu_memory: Option<u64>,
    /// Whether steps are captured as graphs. Without, every step calls its ops: for tests that run different ops under
    /// one key.
    pub capture: bool,
    /// Folder or file of cuBLASLt.
    pub cublas: Option<PathBuf>,
}

impl Default for CudaOptions {
    fn default() -> Self {
        CudaOptions { device: 0, gpu_memory: None, capture: true, cublas: None }
    }
}

/// A device with all that its ops share.
pub(crate) struct Gpu {
    pub(crate) options: CudaOptions,
    pub(crate) budget: Arc<Budget>,
    pub(crate) kernels: Kernels,
    pub(crate) cublas: Cublas,
    /// Steps and prefill units.
    pub(crate) main: Stream,
    /// Scatter and Index.
    pub(crate) side: Stream,
    /// Multiprocessors.
    pub(crate) sms: usize,
    loader: Mutex<Loader>,
    name: String,
    pub(crate) context: Arc<Context>,
}

impl Gpu {
    /// Enqueues a copy to the device on the main stream; the bytes may be dropped afterwards.
    pub(crate) fn load(&self, array: &Array, at: usize, bytes: &[u8]) -> Result<(), BackendError> {
        self.context.bind()?;
        self.loader.lock().expect("no copy panicked").copy(&self.main, array, at, bytes)
    }
}

/// The CUDA backend.
pub struct CudaBackend {
    gpu: Arc<Gpu>,
}

impl CudaBackend {
    /// Opens a device.
    ///
    /// # Errors
    /// No driver, no such GPU, one that is too old, no memory, no cuBLASLt: each by name.
    pub fn new(options: CudaOptions) -> Result<Arc<Self>, BackendError> {
        let count = start_driver()?;
        if count <= options.device {
            let what = format!("GPU {} of {count}", options.device);
            return Err(BackendError::Unsupported {
                what,
                supported: "devices are counted from 0: see `spindle info`",
            });
        }
        let device = nth(options.device)?;
        let (name, compute) = (name(device)?, compute(device)?);
        if compute < (8, 0) {
            let what = format!("{name} with compute capability {}.{}", compute.0, compute.1);
            return Err(BackendError::Unsupported { what, supported: "8.0 (Ampere) and newer" });
        }
        let context = Context::new(device)?;
        let (free, total) = context.memory()?;
        let cap = options.gpu_memory.unwrap_or_else(|| (total / 100 * MEMORY_PERCENT).min(free));
        if cap <= OVERHEAD_BYTES {
            let hint = "the driver, kernels and graphs alone are counted with 1 GiB";
            return Err(BackendError::OutOfMemory { what: "all of the model within --gpu-memory", bytes: cap, hint });
        }
        if total < cap {
            return Err(BackendError::OutOfMemory {
                what: "--gpu-memory",
                bytes: cap,
                hint: "the GPU has less: see `spindle info`",
            });
        }
        let gpu = Gpu {
            cublas: Cublas::open(options.cublas.as_deref())?,
            budget: Budget::new(context.clone(), cap - OVERHEAD_BYTES),
            kernels: Kernels::load(context.clone())?,
            main: Stream::new((9, 0) <= compute)?,
            side: Stream::new(false)?,
            sms: context.attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as usize,
            loader: Mutex::new(Loader::new()?),
            options,
            name,
            context,
        };
        Ok(Arc::new(CudaBackend { gpu: Arc::new(gpu) }))
    }

    /// The most bytes that this process takes of the device, the driver's share included.
    pub fn cap(&self) -> u64 {
        self.gpu.budget.cap() + OVERHEAD_BYTES
    }

    /// The driver's share: context, kernels, graphs.
    pub fn overhead_bytes(&self) -> u64 {
        OVERHEAD_BYTES
    }

    /// Free and total bytes of the device, as the driver counts.
    ///
    /// # Errors
    /// The device is lost.
    pub fn memory(&self) -> Result<(u64, u64), BackendError> {
        self.gpu.context.memory()
    }

    fn array(&self, what: &'static str, rows: usize, cols: usize, is_bf16: bool) -> Result<Buffer, BackendError> {
        let bytes = rows * cols * if is_bf16 { 2 } else { 4 };
        let array = self.gpu.budget.zeros(what, bytes)?;
        Ok(Buffer::new(Arc::new(DeviceBuffer { array, is_bf16, scattered: None }), rows, cols))
    }
}

impl Backend for CudaBackend {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { kind: "cuda", description: self.gpu.name.clone() }
    }

    fn prepare_weight(&self, role: WeightRole, parts: &[WeightPart<'_>]) -> Result<Weight, BackendError> {
        match role {
            WeightRole::Norm => self.vector(parts, "a norm"),
            WeightRole::Rotation => check_rotation(parts).and_then(|()| self.vector(parts, "a rotation")),
            _ => gemm::prepare(&self.gpu, parts),
        }
    }

    fn weight_bytes(&self, role: WeightRole, [out, input]: [usize; 2]) -> u64 {
        match role {
            WeightRole::Norm | WeightRole::Rotation => 4 * (out * input) as u64,
            _ => gemm::matrix_bytes([out, input]) as u64,
        }
    }

    fn random_weight(
        &self,
        role: WeightRole,
        shape: [usize; 2],
        bias: bool,
        seed: u64,
    ) -> Result<Weight, BackendError> {
        match role {
            WeightRole::Norm => {
                let elements = gemm::vector(&self.gpu, "a norm", &vec![1.0; shape[0] * shape[1]])?;
                Ok(Weight::new(Arc::new(Vector { elements }), [1, shape[0] * shape[1]]))
            }
            WeightRole::Rotation => Err(BackendError::Unsupported {
                what: "a random rotation".to_string(),
                supported: "random matrices and norms",
            }),
            _ => gemm::random(&self.gpu, shape, bias, seed),
        }
    }

    fn buffer(&self, what: &'static str, rows: usize, cols: usize) -> Result<Buffer, BackendError> {
        self.array(what, rows, cols, false)
    }

    fn buffer_bytes(&self, rows: usize, cols: usize) -> u64 {
        4 * (rows * cols) as u64
    }

    fn product_buffer(&self, what: &'static str, rows: usize, cols: usize) -> Result<Buffer, BackendError> {
        self.array(what, rows, cols, true)
    }

    fn product_buffer_bytes(&self, rows: usize, cols: usize) -> u64 {
        2 * (rows * cols) as u64
    }

    fn prefill_form(&self) -> PrefillForm {
        PrefillForm { stride_tokens: 4096, stagings: 2 }
    }

    fn staging(&self, shape: &RuntimeShape, tokens: usize) -> Result<Buffer, BackendError> {
        let (rows, cols) = (2 * shape.geometry.kv_heads * tokens, shape.geometry.head_dim);
        let array = self.gpu.budget.zeros("prefill staging", 2 * rows * cols)?;
        let buffer = DeviceBuffer { array, is_bf16: true, scattered: Some(Event::new()?) };
        Ok(Buffer::new(Arc::new(buffer), rows, cols))
    }

    fn staging_bytes(&self, shape: &RuntimeShape, tokens: usize) -> u64 {
        (2 * shape.geometry.kv_heads * tokens * shape.geometry.head_dim * 2) as u64
    }

    fn runtime_plan(&self, shape: &RuntimeShape) -> Vec<MemoryUse> {
        plan(shape, self.gpu.sms)
    }

    fn runtime(&self, shape: &RuntimeShape) -> Result<Arc<dyn Runtime>, BackendError> {
        Ok(Arc::new(CudaRuntime::new(self.gpu.clone(), shape)?))
    }
}

impl CudaBackend {
    /// One part's elements in f32.
    fn vector(&self, parts: &[WeightPart<'_>], what: &'static str) -> Result<Weight, BackendError> {
        let [part] = parts else {
            let what = format!("{what} of {} parts", parts.len());
            return Err(BackendError::Unsupported { what, supported: "one" });
        };
        let elements = part.weight.data.to_f32();
        let array = gemm::vector(&self.gpu, what, &elements)?;
        Ok(Weight::new(Arc::new(Vector { elements: array }), [1, elements.len()]))
    }
}

/// What `spindle info` shows of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceSummary {
    /// As the driver counts.
    pub index: usize,
    /// The product.
    pub name: String,
    /// Compute capability.
    pub compute: (i32, i32),
    /// Bytes that nobody holds.
    pub free_bytes: u64,
    /// All bytes.
    pub total_bytes: u64,
    /// The link to the host, as the system reports it.
    pub link: String,
    /// The driver's CUDA version.
    pub driver: String,
}

/// The architectures whose machine code is embedded.
pub fn architectures() -> &'static str {
    ARCHITECTURES
}

/// All GPUs of this machine.
///
/// # Errors
/// No driver, or none that works.
pub fn devices() -> Result<Vec<DeviceSummary>, BackendError> {
    (0..start_driver()?).map(summary).collect()
}

fn summary(index: usize) -> Result<DeviceSummary, BackendError> {
    let device = nth(index)?;
    let context = Context::new(device)?;
    let (free_bytes, total_bytes) = context.memory()?;
    let version = driver_version()?;
    Ok(DeviceSummary {
        index,
        name: name(device)?,
        compute: compute(device)?,
        free_bytes,
        total_bytes,
        link: link(&context)?,
        driver: format!("CUDA {}.{}", version / 1000, version % 1000 / 10),
    })
}

/// Width and speed of the PCIe link, where the system tells.
fn link(context: &Context) -> Result<String, BackendError> {
    let [domain, bus, device] = [
        Attribute::CU_DEVICE_ATTRIBUTE_PCI_DOMAIN_ID,
        Attribute::CU_DEVICE_ATTRIBUTE_PCI_BUS_ID,
        Attribute::CU_DEVICE_ATTRIBUTE_PCI_DEVICE_ID,
    ]
    .map(|attribute| context.attribute(attribute));
    let place = format!("{:04x}:{:02x}:{:02x}.0", domain?, bus?, device?);
    let read = |what: &str| std::fs::read_to_string(format!("/sys/bus/pci/devices/{place}/{what}")).ok();
    Ok(match (read("current_link_speed"), read("current_link_width")) {
        (Some(speed), Some(width)) => format!("PCIe {place}, {} x{}", speed.trim(), width.trim()),
        _ => format!("PCIe {place}"),
    })
}

/// Starts the driver; how many GPUs it has.
fn start_driver() -> Result<usize, BackendError> {
    let unsupported = |what: String, supported| Err(BackendError::Unsupported { what, supported });
    // SAFETY: looking for a library runs its initialisers, which are NVIDIA's.
    if !unsafe { sys::is_culib_present() } {
        let what = "this machine without an NVIDIA driver (libcuda.so.1)".to_string();
        return unsupported(what, "driver 580 or newer; without one, use --device cpu");
    }
    // SAFETY: the call has no arguments to get wrong.
    let started = unsafe { sys::cuInit(0) };
    if started == sys::CUresult::CUDA_ERROR_NO_DEVICE {
        return unsupported("this machine without a GPU".to_string(), "an NVIDIA GPU; without one, use --device cpu");
    }
    let version = driver_version()?;
    if version < DRIVER_LEAST {
        let what = format!("a driver for CUDA {}.{}", version / 1000, version % 1000 / 10);
        return unsupported(what, "CUDA 13.0: driver 580 or newer");
    }
    check(started, "starting the NVIDIA driver")?;
    let mut count = 0;
    // SAFETY: the call writes an int.
    check(unsafe { sys::cuDeviceGetCount(&mut count) }, "counting GPUs")?;
    Ok(count as usize)
}

fn driver_version() -> Result<i32, BackendError> {
    let mut version = 0;
    // SAFETY: the call writes an int.
    check(unsafe { sys::cuDriverGetVersion(&mut version) }, "asking for the driver's version")?;
    Ok(version)
}

fn nth(index: usize) -> Result<sys::CUdevice, BackendError> {
    let mut device = 0;
    // SAFETY: the call writes a handle.
    check(unsafe { sys::cuDeviceGet(&mut device, index as i32) }, "finding the GPU")?;
    Ok(device)
}

fn name(device: sys::CUdevice) -> Result<String, BackendError> {
    let mut bytes = [0_u8; 256];
    // SAFETY: the call writes a string with a zero at its end, no longer than this.
    check(unsafe { sys::cuDeviceGetName(bytes.as_mut_ptr().cast(), 256, device) }, "asking for the GPU's name")?;
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
}

fn compute(device: sys::CUdevice) -> Result<(i32, i32), BackendError> {
    let ask = |attribute| {
        let mut value = 0;
        // SAFETY: the call writes an int.
        check(unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, device) }, "asking the GPU").map(|()| value)
    };
    let major = ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    Ok((major, ask(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?))
}
