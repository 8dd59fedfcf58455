//! Host memory behind the pool: rows that kernels read and write over the link.
//!
//! Concurrency: the address range is there at once and never moves; worker threads fault its pieces in and pin them,
//! each for itself, while the server already answers. Only `ready` is shared: it grows, piece by piece from the first
//! on, and rows beyond it are not used.

use crate::driver::{Context, check};
use backend::BackendError;
use cudarc::driver::sys;
use memmap2::{MmapMut, MmapOptions};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

/// What a worker faults in and pins at a time.
const PIECE_BYTES: usize = 1 << 30;

/// Threads that do so: pinning is a system call that works a page at a time.
const WORKERS: usize = 4;

/// Faulted in a page at a time; huge pages come where the system gives them.
const PAGE_BYTES: usize = 4096;

const HUGE_PAGE_BYTES: usize = 2 << 20;

/// The rows of the Dram tier.
pub(crate) struct HostMemory {
    /// First byte of the first row, for host and device alike.
    pub(crate) start: u64,
    row_bytes: usize,
    rows: usize,
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    _map: MmapMut,
}

struct Shared {
    context: Arc<Context>,
    start: u64,
    bytes: usize,
    /// The next piece that nobody has.
    next: AtomicUsize,
    /// Which pieces are pinned; a failed one ends the growth.
    pinned: Mutex<Vec<bool>>,
    /// Pieces from the first on that are pinned.
    ready: AtomicUsize,
    stop: AtomicBool,
}

impl HostMemory {
    /// Room for `rows` rows; none of them is ready yet.
    pub(crate) fn new(context: &Arc<Context>, rows: usize, row_bytes: usize) -> Result<Self, BackendError> {
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_CAN_USE_HOST_POINTER_FOR_REGISTERED_MEM;
        if context.attribute(attribute)? == 0 {
            let what = "host memory behind the pool".to_string();
            return Err(BackendError::Unsupported { what, supported: "GPUs that use the host's own addresses" });
        }
        let bytes = rows * row_bytes;
        let refused = |_| BackendError::OutOfMemory {
            what: "host memory for KV",
            bytes: bytes as u64,
            hint: "the system refuses it: lower --host-memory",
        };
        let map = MmapOptions::new().len(bytes + HUGE_PAGE_BYTES).no_reserve_swap().map_anon().map_err(refused)?;
        // Where the system declines, small pages work as well.
        let _ = map.advise(memmap2::Advice::HugePage);
        let start = (map.as_ptr() as u64).next_multiple_of(HUGE_PAGE_BYTES as u64);
        let pieces = bytes.div_ceil(PIECE_BYTES);
        let shared = Arc::new(Shared {
            context: context.clone(),
            start,
            bytes,
            next: AtomicUsize::new(0),
            pinned: Mutex::new(vec![false; pieces]),
            ready: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        // From here on the map goes only when every worker has ended: see `drop`.
        let mut memory = HostMemory { start, row_bytes, rows, shared, workers: Vec::new(), _map: map };
        for _ in 0..WORKERS.min(pieces) {
            let shared = memory.shared.clone();
            let worker = std::thread::Builder::new().name("pin".to_string()).spawn(move || shared.work());
            memory.workers.push(worker.map_err(refused)?);
        }
        Ok(memory)
    }

    /// Rows that kernels may use by now.
    pub(crate) fn ready_rows(&self) -> usize {
        let bytes = self.shared.ready.load(Ordering::Acquire) * PIECE_BYTES;
        self.rows.min(bytes / self.row_bytes)
    }

    /// Whether there will be more: not at its full size, and not if the system has refused to pin more.
    pub(crate) fn grows(&self) -> bool {
        !self.shared.stop.load(Ordering::Relaxed) && self.ready_rows() < self.rows
    }

    /// A frame's bytes, for tests; nothing on the device uses them meanwhile.
    pub(crate) fn bytes(&self, at: usize, len: usize) -> Vec<u8> {
        assert!(at + len <= self.ready_rows() * self.row_bytes, "{len} bytes at {at} of host memory");
        // SAFETY: mapped memory; the caller has waited for the device.
        unsafe { std::slice::from_raw_parts((self.start as usize + at) as *const u8, len) }.to_vec()
    }

    /// Overwrites a frame's bytes, for tests.
    pub(crate) fn fill(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.ready_rows() * self.row_bytes, "{} bytes at {at}", bytes.len());
        let target = (self.start as usize + at) as *mut u8;
        // SAFETY: mapped memory; the caller has waited for the device, and nobody else has these bytes.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), target, bytes.len()) };
    }
}

impl Shared {
    /// Faults pieces in and pins them, until there are none left.
    fn work(&self) {
        if self.context.bind().is_err() {
            return self.stop.store(true, Ordering::Relaxed);
        }
        loop {
            let piece = self.next.fetch_add(1, Ordering::Relaxed);
            let first = piece * PIECE_BYTES;
            if self.bytes <= first || self.stop.load(Ordering::Relaxed) {
                return;
            }
            let len = PIECE_BYTES.min(self.bytes - first);
            if !self.fault_in(first, len) || self.pin(first, len).is_err() {
                // What is pinned stays usable; the tier just grows no further.
                self.stop.store(true, Ordering::Relaxed);
                return;
            }
            let mut pinned = self.pinned.lock().unwrap_or_else(PoisonError::into_inner);
            pinned[piece] = true;
            let ready = pinned.iter().take_while(|pinned| **pinned).count();
            self.ready.store(ready, Ordering::Release);
        }
    }

    /// Writes to every page; tells whether it was let to the end.
    fn fault_in(&self, first: usize, len: usize) -> bool {
        for at in (first..first + len).step_by(PAGE_BYTES) {
            if at.is_multiple_of(HUGE_PAGE_BYTES) && self.stop.load(Ordering::Relaxed) {
                return false;
            }
            // SAFETY: mapped memory that this worker alone writes until its piece is ready.
            unsafe { std::ptr::write_volatile((self.start as usize + at) as *mut u8, 0) };
        }
        true
    }

    fn pin(&self, first: usize, len: usize) -> Result<(), BackendError> {
        let flags = sys::CU_MEMHOSTREGISTER_PORTABLE | sys::CU_MEMHOSTREGISTER_DEVICEMAP;
        let start = (self.start as usize + first) as *mut std::ffi::c_void;
        // SAFETY: mapped memory, unregistered in `drop` before it goes.
        check(unsafe { sys::cuMemHostRegister_v2(start, len, flags) }, "pinning host memory")
    }
}

impl Drop for HostMemory {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.workers.drain(..).for_each(|worker| drop(worker.join()));
        let _ = self.shared.context.bind();
        let pinned = self.shared.pinned.lock().unwrap_or_else(PoisonError::into_inner);
        for (piece, _) in pinned.iter().enumerate().filter(|(_, pinned)| **pinned) {
            let start = (self.start as usize + piece * PIECE_BYTES) as *mut std::ffi::c_void;
            // SAFETY: registered by `pin`; the runtime has waited for the device.
            let _ = unsafe { sys::cuMemHostUnregister(start) };
        }
    }
}
