//! Device memory under a hard cap: every allocation is counted before it is made.

use crate::driver::{Context, check};
use backend::BackendError;
use cudarc::driver::sys;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// The bytes that may be allocated, and those that are.
pub(crate) struct Budget {
    context: Arc<Context>,
    cap: u64,
    used: AtomicU64,
}

impl Budget {
    /// At most `cap` bytes.
    pub(crate) fn new(context: Arc<Context>, cap: u64) -> Arc<Self> {
        Arc::new(Budget { context, cap, used: AtomicU64::new(0) })
    }

    /// The cap.
    pub(crate) fn cap(&self) -> u64 {
        self.cap
    }

    /// Allocates `bytes` zeros.
    pub(crate) fn zeros(self: &Arc<Self>, what: &'static str, bytes: usize) -> Result<Array, BackendError> {
        let array = self.array(what, bytes)?;
        // SAFETY: the array has that many bytes.
        check(unsafe { sys::cuMemsetD8_v2(array.pointer, 0, bytes) }, what)?;
        settle()?;
        Ok(array)
    }

    /// Allocates `bytes` of anything.
    pub(crate) fn array(self: &Arc<Self>, what: &'static str, bytes: usize) -> Result<Array, BackendError> {
        let counted = (bytes as u64).next_multiple_of(GRANULE);
        let within = |used: u64| used.checked_add(counted).filter(|used| *used <= self.cap);
        let out = |hint| BackendError::OutOfMemory { what, bytes: bytes as u64, hint };
        let reserved = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within);
        reserved.map_err(|_| out("it is beyond --gpu-memory: raise it, or lower --max-model-len or --max-lanes"))?;
        self.context.bind()?;
        let mut pointer = 0;
        // SAFETY: the call writes an address.
        let result = unsafe { sys::cuMemAlloc_v2(&mut pointer, bytes.max(1)) };
        if result != sys::CUresult::CUDA_SUCCESS {
            self.used.fetch_sub(counted, Ordering::Relaxed);
        }
        match result {
            sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => {
                Err(out("the GPU has no more: another process may hold some; lower --gpu-memory"))
            }
            result => {
                check(result, what)?;
                Ok(Array { pointer, bytes, counted, budget: self.clone() })
            }
        }
    }
}

/// Waits for what the default stream does: our own streams do not.
fn settle() -> Result<(), BackendError> {
    // SAFETY: the default stream always lives.
    check(unsafe { sys::cuStreamSynchronize(std::ptr::null_mut()) }, "waiting for the GPU")
}

/// What arrays are counted in. The driver maps large ones in pieces of 2 MiB: what that adds is part of its share.
pub(crate) const GRANULE: u64 = 512;

/// Device memory that frees itself.
pub(crate) struct Array {
    pub(crate) pointer: u64,
    pub(crate) bytes: usize,
    counted: u64,
    budget: Arc<Budget>,
}

impl Array {
    /// Copies from the host, and waits: for loading, not for steps.
    pub(crate) fn fill(&self, at: usize, bytes: &[u8]) -> Result<(), BackendError> {
        assert!(at + bytes.len() <= self.bytes, "{} bytes at {at} of {}", bytes.len(), self.bytes);
        self.budget.context.bind()?;
        let target = self.pointer + at as u64;
        // SAFETY: the array has these bytes.
        let copied = unsafe { sys::cuMemcpyHtoD_v2(target, bytes.as_ptr().cast(), bytes.len()) };
        check(copied, "copying to the GPU")?;
        settle()
    }

    /// Copies to the host, and waits.
    pub(crate) fn read(&self, at: usize, bytes: &mut [u8]) -> Result<(), BackendError> {
        assert!(at + bytes.len() <= self.bytes, "{} bytes at {at} of {}", bytes.len(), self.bytes);
        self.budget.context.bind()?;
        let source = self.pointer + at as u64;
        // SAFETY: the array has these bytes.
        let copied = unsafe { sys::cuMemcpyDtoH_v2(bytes.as_mut_ptr().cast(), source, bytes.len()) };
        check(copied, "copying from the GPU")
    }
}

impl Drop for Array {
    fn drop(&mut self) {
        // The last owner may be any thread.
        let _ = self.budget.context.bind();
        // SAFETY: allocated in `Budget::array`.
        let _ = unsafe { sys::cuMemFree_v2(self.pointer) };
        self.budget.used.fetch_sub(self.counted, Ordering::Relaxed);
    }
}
