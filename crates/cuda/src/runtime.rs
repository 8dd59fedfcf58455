//! The GPU as a [`Runtime`]: pool, lanes, workspaces; every op's launches are in the file of its name.

use crate::abi::{
    ALGORITHMS_MAX, LaneArgument, LaneOutputArgument, PartialArgument, Pointer, RuntimeArgument, ViewArgument, WORKS,
};
use crate::device::Gpu;
use crate::driver::{Event, Pinned};
use crate::host_memory::HostMemory;
use crate::kernels::{Argument, Launch, arg};
use crate::memory::Array;
use crate::residency::LINK_BLOCKS;
use crate::slots::Slots;
use crate::step::Steps;
use crate::upload::Uploads;
use backend::{BackendError, Batch, Buffer, MemoryUse, Partial, RuntimeShape, View, Weight};
use kv::{PAGE_TOKENS, geometry};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

/// One pool, its lanes and workspaces on a GPU.
pub(crate) struct CudaRuntime {
    /// What it is sized for.
    pub(crate) shape: RuntimeShape,
    /// What kernels get of all this.
    pub(crate) argument: RuntimeArgument,
    /// Ring of small uploads.
    pub(crate) uploads: Mutex<Uploads>,
    /// Steps in flight and captured graphs.
    pub(crate) steps: Mutex<Steps>,
    /// Prefill outputs on their way back.
    pub(crate) prefilled: Mutex<crate::sample::Prefilled>,
    /// bf16 copies of f32 inputs of products, and what cuBLASLt asks for.
    pub(crate) products: crate::gemm::Workspace,
    /// Lanes that the step in work is sized for.
    pub(crate) bucket: AtomicUsize,
    /// The first error; nothing runs after it.
    failure: OnceLock<String>,
    /// Marks main work that the side stream waits for.
    forked: Event,
    /// Marks side work that the main stream waits for.
    joined: Event,
    /// Whether there may be such work.
    aside: AtomicBool,
    /// Whether `retrieve` is the main stream's last kernel: the next one may run beside it.
    behind_retrieve: AtomicBool,
    /// Pinned: outputs of even and odd steps.
    pub(crate) outputs: Pinned,
    /// Cache rows of each lane.
    pub(crate) slots: Mutex<Slots>,
    /// Owns what `argument` points to.
    pub(crate) memory: Memory,
    /// The device, its streams and kernels: the last to go.
    pub(crate) gpu: Arc<Gpu>,
}

/// A runtime's arrays.
pub(crate) struct Memory {
    /// The KV pool.
    pub(crate) pool: Array,
    /// Everything else, one array: see [`Layout`].
    pub(crate) state: Array,
    /// Rows of host memory, where there are any.
    pub(crate) host: Option<HostMemory>,
}

/// Where things lie in the state array, in bytes.
pub(crate) struct Layout {
    at: usize,
}

impl Layout {
    /// A place for so many bytes.
    pub(crate) fn take(&mut self, bytes: usize) -> Pointer {
        let at = self.at;
        self.at = (at + bytes).next_multiple_of(256);
        at as Pointer
    }
}

/// Items that each kind of work is cut into for a device of `sms` multiprocessors: attention runs two blocks on each,
/// scoring and estimates four. A block of `retrieve` beside them takes the place of one, or of two.
pub(crate) fn targets(shape: &RuntimeShape, sms: usize) -> [usize; WORKS] {
    let beside = if shape.dram_rows == 0 { 0 } else { LINK_BLOCKS };
    [2 * sms, 2 * sms - beside, 4 * sms - 2 * beside]
}

/// Rows of partials: of every item of a step (each lane's last one may be short) and query head, and of two blocks of
/// prefill attention on each multiprocessor.
pub(crate) fn split_rows(shape: &RuntimeShape, sms: usize) -> usize {
    let heads = shape.geometry.kv_heads;
    let items = targets(shape, sms).into_iter().max().expect("there are kinds") + shape.max_lanes * heads;
    (items * shape.q_heads / heads).max(2 * sms * PREFILL_ROWS)
}

/// Rows of a block of `prefill_attend`.
const PREFILL_ROWS: usize = 128;

/// A runtime's description with addresses relative to the state array (pool and outputs left zero), and its bytes.
pub(crate) fn lay_out(shape: &RuntimeShape, sms: usize) -> (RuntimeArgument, usize) {
    let geometry = shape.geometry;
    let max_pages = geometry::pages(shape.max_tokens + 1);
    let (lanes, heads, q_heads, d) = (shape.max_lanes, geometry.kv_heads, shape.q_heads, geometry.head_dim);
    let (bitmap_words, mask_words) = (max_pages.div_ceil(32), shape.vocab.div_ceil(32));
    let schedule_words = 2 + lanes + 1;
    let targets = targets(shape, sms);
    let group = q_heads / heads;
    let rope_positions = shape.max_tokens + 1;
    let mut layout = Layout { at: 0 };
    let int = |n: usize| i32::try_from(n).expect("sizes have 31 bits");
    let argument = RuntimeArgument {
        layers: int(geometry.layers),
        kv_heads: int(heads),
        q_heads: int(q_heads),
        group: int(group),
        head_dim: int(d),
        vocab: int(shape.vocab),
        max_lanes: int(lanes),
        max_pages: int(max_pages),
        bitmap_words: int(bitmap_words),
        mask_words: int(mask_words),
        schedule_words: int(schedule_words),
        targets: targets.map(int),
        max_tokens: int(max_pages * PAGE_TOKENS),
        rope_positions: int(rope_positions),
        pool: 0,
        lanes: layout.take(lanes * size_of::<LaneArgument>()),
        kv_rows: layout.take(4 * lanes * max_pages),
        summary_rows: layout.take(4 * lanes * max_pages),
        n_active: layout.take(4),
        active: layout.take(4 * lanes),
        schedules: layout.take(4 * ALGORITHMS_MAX * WORKS * schedule_words),
        rope: layout.take(4 * rope_positions * d),
        page_scores: layout.take(4 * lanes * q_heads * max_pages),
        reduced: layout.take(4 * lanes * heads * max_pages),
        token_logits: layout.take(2 * lanes * q_heads * max_pages * PAGE_TOKENS),
        rotated_q: layout.take(4 * lanes * q_heads * d),
        page_list: layout.take(4 * lanes * heads * max_pages),
        page_list_len: layout.take(4 * lanes * heads),
        selected: layout.take(4 * lanes * heads * bitmap_words),
        splits: layout.take(4 * split_rows(shape, sms) * (d + 2)),
        arrivals: layout.take(4 * lanes * heads),
        counts: layout.take(4 * lanes * shape.vocab),
        bias: layout.take(4 * lanes * shape.vocab),
        suppressed: layout.take(4 * lanes * mask_words),
        mask: layout.take(4 * lanes * mask_words),
        output: 0,
        step: layout.take(4),
        sample_scratch: layout.take(crate::sample::scratch_bytes(lanes, shape.vocab)),
        residency: crate::residency::lay_out(shape, max_pages, &mut layout),
    };
    (argument, layout.at)
}

/// The lines of the memory plan.
pub(crate) fn plan(shape: &RuntimeShape, sms: usize) -> Vec<MemoryUse> {
    let (argument, bytes) = lay_out(shape, sms);
    let pool = (shape.pool_rows * shape.geometry.row_bytes()) as u64;
    let uploads = Uploads::bytes(argument.max_pages as usize) as u64;
    let mut plan = vec![
        MemoryUse { name: "KV pool", bytes: pool },
        MemoryUse { name: "lanes and selection", bytes: bytes as u64 + uploads },
        MemoryUse { name: "product workspace", bytes: crate::gemm::Workspace::bytes() as u64 },
    ];
    if 0 < shape.dram_rows {
        let host = (shape.dram_rows * shape.geometry.row_bytes()) as u64;
        plan.push(MemoryUse { name: "host memory for KV", bytes: host });
    }
    plan
}

impl CudaRuntime {
    /// Allocates everything.
    pub(crate) fn new(gpu: Arc<Gpu>, shape: &RuntimeShape) -> Result<Self, BackendError> {
        let (heads, d) = (shape.geometry.kv_heads, shape.geometry.head_dim);
        let group = shape.q_heads / heads;
        if ![64, 96, 128].contains(&d) {
            let what = format!("head_dim {d}");
            return Err(BackendError::Unsupported { what, supported: "on a GPU, 64, 96 and 128" });
        }
        if !(1..=crate::abi::GROUP_MAX).contains(&group) {
            let what = format!("{} query heads for {heads} KV heads", shape.q_heads);
            return Err(BackendError::Unsupported { what, supported: "on a GPU, 1 to 8 query heads for each KV head" });
        }
        if crate::sample::VOCAB_MOST as usize <= shape.vocab {
            let what = format!("a vocabulary of {} tokens", shape.vocab);
            return Err(BackendError::Unsupported { what, supported: "on a GPU, fewer than 262,144" });
        }
        gpu.context.bind()?;
        let (mut argument, bytes) = lay_out(shape, gpu.sms);
        let pool = gpu.budget.zeros("the KV pool", shape.pool_rows * shape.geometry.row_bytes())?;
        let state = gpu.budget.zeros("lanes and selection", bytes)?;
        let outputs = Pinned::new(2 * shape.max_lanes * size_of::<LaneOutputArgument>())?;
        argument.shift(state.pointer);
        let row_bytes = shape.geometry.row_bytes();
        let host = (0 < shape.dram_rows).then(|| HostMemory::new(&gpu.context, shape.dram_rows, row_bytes));
        let host = host.transpose()?;
        argument.residency.host = host.as_ref().map_or(0, |host| host.start);
        (argument.pool, argument.output) = (pool.pointer, outputs.device);
        let runtime = CudaRuntime {
            uploads: Mutex::new(Uploads::new(&gpu.budget, argument.max_pages as usize)?),
            steps: Mutex::new(Steps::new(shape)?),
            prefilled: Mutex::new(crate::sample::Prefilled::new(shape)?),
            products: crate::gemm::Workspace::new(&gpu.budget)?,
            shape: shape.clone(),
            argument,
            bucket: AtomicUsize::new(shape.max_lanes),
            failure: OnceLock::new(),
            forked: Event::new()?,
            joined: Event::new()?,
            aside: AtomicBool::new(false),
            behind_retrieve: AtomicBool::new(false),
            outputs,
            slots: Mutex::new(Slots::new(shape.pool_rows, shape.max_lanes)),
            memory: Memory { pool, state, host },
            gpu,
        };
        runtime.check_abi()?;
        runtime.make_rope();
        runtime.gpu.main.synchronize()?;
        match runtime.failure() {
            None => Ok(runtime),
            Some(message) => Err(BackendError::DeviceLost(message)),
        }
    }

    /// Kernels and `abi` mean the same structs.
    fn check_abi(&self) -> Result<(), BackendError> {
        let how = Launch { kernel: "abi_sizes", grid: [1, 1, 1], threads: 1, shared: 0 };
        self.run(how, &[arg(&self.argument.splits)]);
        self.gpu.main.synchronize()?;
        let mut bytes = [0; 28];
        self.memory.state.read((self.argument.splits - self.memory.state.pointer) as usize, &mut bytes)?;
        let sizes = bytes.as_chunks::<4>().0.iter().map(|word| u32::from_le_bytes(*word) as usize);
        let own = [
            size_of::<ViewArgument>(),
            size_of::<PartialArgument>(),
            size_of::<LaneArgument>(),
            size_of::<LaneOutputArgument>(),
            size_of::<RuntimeArgument>(),
            size_of::<crate::abi::UnitsArgument>(),
            size_of::<crate::abi::ResidencyArgument>(),
        ];
        assert!(sizes.eq(own), "kernels and src/abi.rs differ: {own:?}");
        Ok(())
    }

    /// Fills the table of cosines and sines.
    fn make_rope(&self) {
        let rope = &self.shape.rope;
        let words: Vec<u32> =
            rope.inv_freq.iter().flat_map(|x| [x.to_bits() as u32, (x.to_bits() >> 32) as u32]).collect();
        let inv_freq = self.upload(&words);
        let (positions, half) = (self.shape.max_tokens + 1, rope.inv_freq.len());
        let how = Launch { kernel: "make_rope", grid: [positions, 1, 1], threads: half, shared: 0 };
        self.run(how, &[arg(&self.argument), arg(&inv_freq), arg(&rope.attention_factor)]);
    }

    /// Enqueues a kernel on the main stream.
    pub(crate) fn run(&self, how: Launch<'_>, arguments: &[Argument<'_>]) {
        self.behind_retrieve.store(false, Ordering::Relaxed);
        if self.failure.get().is_none() {
            self.note(self.gpu.kernels.launch(&self.gpu.main, how, arguments));
        }
    }

    /// Says that the kernel that was enqueued last is `retrieve`.
    pub(crate) fn set_behind_retrieve(&self) {
        self.behind_retrieve.store(true, Ordering::Relaxed);
    }

    /// Whether the kernel that is enqueued next runs beside `retrieve`, and waits for it itself.
    pub(crate) fn is_behind_retrieve(&self) -> bool {
        self.behind_retrieve.load(Ordering::Relaxed)
    }

    /// Enqueues a kernel on the side stream: after [`CudaRuntime::fork`].
    pub(crate) fn run_aside(&self, how: Launch<'_>, arguments: &[Argument<'_>]) {
        if self.failure.get().is_none() {
            self.note(self.gpu.kernels.launch(&self.gpu.side, how, arguments));
        }
    }

    /// What is enqueued aside next waits for all that the main stream has.
    pub(crate) fn fork(&self) {
        self.aside.store(true, Ordering::Relaxed);
        self.note(self.forked.record(&self.gpu.main));
        self.note(self.gpu.side.wait(&self.forked));
    }

    /// What the main stream gets next waits for all that is aside.
    pub(crate) fn join(&self) {
        if self.aside.swap(false, Ordering::Relaxed) {
            self.note(self.joined.record(&self.gpu.side));
            self.note(self.gpu.main.wait(&self.joined));
        }
    }

    /// Keeps the first error.
    pub(crate) fn note(&self, result: Result<(), BackendError>) {
        if let Err(error) = result {
            let message = match error {
                BackendError::DeviceLost(message) => message,
                other => other.to_string(),
            };
            self.failure.get_or_init(|| message);
        }
    }

    /// The first error.
    pub(crate) fn failure(&self) -> Option<String> {
        self.failure.get().cloned()
    }

    /// Copies words to the device, for kernels that are enqueued next.
    pub(crate) fn upload(&self, words: &[u32]) -> Pointer {
        let mut uploads = self.uploads.lock().expect("no upload panicked");
        let uploaded = uploads.words(&self.gpu.main, &self.gpu.side, words);
        uploaded.unwrap_or_else(|error| {
            self.note(Err(error));
            0
        })
    }

    /// Rows of a batch; for lanes, as many as the step is sized for.
    pub(crate) fn rows(&self, batch: Batch) -> usize {
        match batch {
            Batch::Lanes => self.bucket.load(Ordering::Relaxed),
            Batch::Tokens(n) => n,
        }
    }

    /// Query heads of a KV head.
    pub(crate) fn group(&self) -> usize {
        self.shape.q_heads / self.shape.geometry.kv_heads
    }
}

impl Drop for CudaRuntime {
    fn drop(&mut self) {
        // Graphs and memory go only when nothing runs; what failed before is known.
        let _ = self.gpu.context.bind();
        let _ = self.gpu.main.synchronize();
        let _ = self.gpu.side.synchronize();
    }
}

/// An activation or staging buffer's array.
pub(crate) struct DeviceBuffer {
    pub(crate) array: Array,
    pub(crate) is_bf16: bool,
    /// Of a staging buffer: marks the last scatter out of it.
    pub(crate) scattered: Option<Event>,
}

/// A buffer's own array.
pub(crate) fn device_buffer(buffer: &Buffer) -> &DeviceBuffer {
    buffer.downcast().expect("a buffer of this backend")
}

/// A view as kernels see it.
pub(crate) fn view(view: View<'_>) -> ViewArgument {
    let buffer = device_buffer(view.buffer);
    let element = if buffer.is_bf16 { 2 } else { 4 };
    let cols = view.buffer.cols();
    ViewArgument {
        data: buffer.array.pointer + (view.row * cols * element) as u64,
        cols: cols as i32,
        is_bf16: buffer.is_bf16.into(),
    }
}

/// A partial as kernels see it.
pub(crate) fn partial(partial: &Partial) -> PartialArgument {
    let pointer = |buffer: &Buffer| {
        let buffer = device_buffer(buffer);
        assert!(!buffer.is_bf16, "partials are f32");
        buffer.array.pointer
    };
    PartialArgument { output: pointer(&partial.output), lse: pointer(&partial.lse) }
}

/// A vector's elements (norm `[n]`, rotation `[kv_heads * d, d]`), f32, on the device.
pub(crate) struct Vector {
    pub(crate) elements: Array,
}

/// A vector's address.
pub(crate) fn vector(weight: &Weight) -> Pointer {
    weight.downcast::<Vector>().expect("a vector of this backend").elements.pointer
}

impl RuntimeArgument {
    /// Makes relative addresses absolute.
    fn shift(&mut self, base: Pointer) {
        for pointer in [
            &mut self.lanes,
            &mut self.kv_rows,
            &mut self.summary_rows,
            &mut self.n_active,
            &mut self.active,
            &mut self.schedules,
            &mut self.rope,
            &mut self.page_scores,
            &mut self.reduced,
            &mut self.token_logits,
            &mut self.rotated_q,
            &mut self.page_list,
            &mut self.page_list_len,
            &mut self.selected,
            &mut self.splits,
            &mut self.arrivals,
            &mut self.counts,
            &mut self.bias,
            &mut self.suppressed,
            &mut self.mask,
            &mut self.step,
            &mut self.sample_scratch,
        ] {
            *pointer += base;
        }
        self.residency.shift(base);
    }
}
