//! The CPU as a [`Backend`]: memory and weights.

use super::array::Array;
use super::retrieve::SlotStates;
use super::rope::RopeTable;
use super::runtime::CpuRuntime;
use super::simd::Isa;
use super::threads::Threads;
use super::workspace::Workspace;
use super::{gemm, random};
use crate::fuse::check_rotation;
use crate::{
    Backend, BackendError, Buffer, DeviceInfo, MemoryUse, PrefillForm, Runtime, RuntimeShape, Weight, WeightPart,
    WeightRole,
};
use std::path::PathBuf;
use std::sync::Arc;

/// What a CPU backend is made of.
#[derive(Clone, Copy, Debug)]
pub struct CpuOptions {
    /// Threads that ops spread over.
    pub threads: usize,
    /// Instruction set of the kernels.
    pub isa: Isa,
}

impl Default for CpuOptions {
    /// Every core, the best instruction set.
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        CpuOptions { threads, isa: Isa::detect() }
    }
}

/// The CPU backend.
pub struct CpuBackend {
    threads: Arc<Threads>,
    isa: Isa,
    /// Where host memory behind the pool is a file.
    host_folder: Option<PathBuf>,
}

impl CpuBackend {
    /// Starts the threads.
    ///
    /// # Errors
    /// The machine lacks the instruction set.
    pub fn new(options: CpuOptions) -> Result<Self, BackendError> {
        if !options.isa.is_available() {
            return Err(BackendError::Unsupported {
                what: format!("instruction set {}", options.isa.name()),
                supported: "this machine runs the portable kernels",
            });
        }
        let threads = Arc::new(Threads::new(options.threads.max(1)));
        Ok(CpuBackend { threads, isa: options.isa, host_folder: None })
    }

    /// Keeps host memory behind the pool in a file of `folder`: contexts may be larger than memory.
    #[must_use]
    pub fn with_host_folder(self, folder: PathBuf) -> Self {
        CpuBackend { host_folder: Some(folder), ..self }
    }
}

impl Backend for CpuBackend {
    fn info(&self) -> DeviceInfo {
        DeviceInfo { kind: "cpu", description: format!("{}, {} threads", self.isa.name(), self.threads.count()) }
    }

    fn prepare_weight(&self, role: WeightRole, parts: &[WeightPart<'_>]) -> Result<Weight, BackendError> {
        match role {
            WeightRole::Norm => vector(parts, "a norm"),
            WeightRole::Rotation => check_rotation(parts).and_then(|()| vector(parts, "a rotation")),
            _ => gemm::pack(&self.threads, parts),
        }
    }

    fn weight_bytes(&self, role: WeightRole, [out, input]: [usize; 2]) -> u64 {
        match role {
            WeightRole::Norm | WeightRole::Rotation => 4 * (out * input) as u64,
            _ => 2 * (out.next_multiple_of(super::weight::PANEL) * input) as u64,
        }
    }

    fn random_weight(
        &self,
        role: WeightRole,
        shape: [usize; 2],
        bias: bool,
        seed: u64,
    ) -> Result<Weight, BackendError> {
        let noise = random::Noise::of(role, shape, seed);
        self.prepare_weight(role, &[noise.part(bias)])
    }

    fn prefill_form(&self) -> PrefillForm {
        PrefillForm { stride_tokens: 512, stagings: 1 }
    }

    fn buffer(&self, what: &'static str, rows: usize, cols: usize) -> Result<Buffer, BackendError> {
        Ok(Buffer::new(Arc::new(Array::<f32>::zeros(what, rows * cols)?), rows, cols))
    }

    fn buffer_bytes(&self, rows: usize, cols: usize) -> u64 {
        4 * (rows * cols) as u64
    }

    fn staging(&self, shape: &RuntimeShape, tokens: usize) -> Result<Buffer, BackendError> {
        let (rows, cols) = (2 * shape.geometry.kv_heads * tokens, shape.geometry.head_dim);
        Ok(Buffer::new(Arc::new(Array::<u16>::zeros("prefill staging", rows * cols)?), rows, cols))
    }

    fn staging_bytes(&self, shape: &RuntimeShape, tokens: usize) -> u64 {
        (2 * shape.geometry.kv_heads * tokens * shape.geometry.head_dim * 2) as u64
    }

    fn runtime_plan(&self, shape: &RuntimeShape) -> Vec<MemoryUse> {
        let pool = (shape.pool_rows * shape.geometry.row_bytes()) as u64;
        let mut plan = vec![MemoryUse { name: "KV pool", bytes: pool }, Workspace::plan(shape), RopeTable::plan(shape)];
        if 0 < shape.dram_rows {
            let dram = (shape.dram_rows * shape.geometry.row_bytes()) as u64;
            plan.push(MemoryUse { name: "host memory for KV", bytes: dram });
            plan.push(SlotStates::plan(shape));
        }
        plan
    }

    fn runtime(&self, shape: &RuntimeShape) -> Result<Arc<dyn Runtime>, BackendError> {
        Ok(Arc::new(CpuRuntime::new(shape, self.threads.clone(), self.isa, self.host_folder.as_deref())?))
    }
}

/// One part's elements in f32.
fn vector(parts: &[WeightPart<'_>], what: &'static str) -> Result<Weight, BackendError> {
    let [part] = parts else {
        return Err(BackendError::Unsupported { what: format!("{what} of {} parts", parts.len()), supported: "one" });
    };
    let elements = Array::of(what, &part.weight.data.to_f32())?;
    let len = elements.len();
    Ok(Weight::new(Arc::new(super::weight::Vector { elements }), [1, len]))
}
