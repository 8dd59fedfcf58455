//! The driver's API as far as it is needed, with errors as values and handles that free themselves.

use backend::BackendError;
use cudarc::driver::sys;
use std::ffi::{CStr, c_void};
use std::ptr;
use std::sync::Arc;

/// A driver call's outcome.
///
/// # Errors
/// The driver's own words, with what was tried.
pub(crate) fn check(result: sys::CUresult, what: &str) -> Result<(), BackendError> {
    if result == sys::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut text = ptr::null();
    // SAFETY: the call writes a pointer to a static string, or leaves it null.
    let found = unsafe { sys::cuGetErrorString(result, &mut text) };
    let text = match found {
        // SAFETY: a string with a zero at its end.
        sys::CUresult::CUDA_SUCCESS if !text.is_null() => unsafe { CStr::from_ptr(text) }.to_string_lossy(),
        _ => "an unknown error".into(),
    };
    Err(BackendError::DeviceLost(format!("{what}: {text} ({result:?})")))
}

/// One device's primary context.
pub(crate) struct Context {
    pub(crate) device: sys::CUdevice,
    context: sys::CUcontext,
}

// SAFETY: a context may be current in any thread.
unsafe impl Send for Context {}
// SAFETY: the driver locks what threads share.
unsafe impl Sync for Context {}

impl Context {
    pub(crate) fn new(device: sys::CUdevice) -> Result<Arc<Self>, BackendError> {
        let mut context = ptr::null_mut();
        // SAFETY: the driver is initialised; the call writes a handle.
        check(unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, device) }, "opening the GPU")?;
        let context = Arc::new(Context { device, context });
        context.bind()?;
        Ok(context)
    }

    /// Makes the context the calling thread's.
    pub(crate) fn bind(&self) -> Result<(), BackendError> {
        // SAFETY: a context that lives.
        check(unsafe { sys::cuCtxSetCurrent(self.context) }, "binding the GPU to a thread")
    }

    pub(crate) fn attribute(&self, attribute: sys::CUdevice_attribute) -> Result<i32, BackendError> {
        let mut value = 0;
        // SAFETY: the call writes an int.
        check(unsafe { sys::cuDeviceGetAttribute(&mut value, attribute, self.device) }, "asking the GPU")?;
        Ok(value)
    }

    /// Free and total bytes of device memory.
    pub(crate) fn memory(&self) -> Result<(u64, u64), BackendError> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: the call writes two sizes.
        check(unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) }, "asking for the GPU's memory")?;
        Ok((free as u64, total as u64))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once in `new`. An error at the end of the process has nobody to hear it.
        let _ = unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// A queue of work on the device.
pub(crate) struct Stream {
    pub(crate) raw: sys::CUstream,
    /// Whether a kernel may start before the one ahead of it has ended.
    pub(crate) overlaps: bool,
}

// SAFETY: streams may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: the driver locks a stream.
unsafe impl Sync for Stream {}

impl Stream {
    pub(crate) fn new(overlaps: bool) -> Result<Self, BackendError> {
        let mut raw = ptr::null_mut();
        let flags = sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32;
        // SAFETY: the call writes a handle.
        check(unsafe { sys::cuStreamCreate(&mut raw, flags) }, "making a stream")?;
        Ok(Stream { raw, overlaps })
    }

    pub(crate) fn synchronize(&self) -> Result<(), BackendError> {
        // SAFETY: a stream that lives.
        check(unsafe { sys::cuStreamSynchronize(self.raw) }, "waiting for the GPU")
    }

    pub(crate) fn wait(&self, event: &Event) -> Result<(), BackendError> {
        // SAFETY: both live.
        check(unsafe { sys::cuStreamWaitEvent(self.raw, event.raw, 0) }, "ordering two streams")
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: made in `new`; what is still in it ends by itself.
        let _ = unsafe { sys::cuStreamDestroy_v2(self.raw) };
    }
}

/// A point in a stream.
pub(crate) struct Event {
    raw: sys::CUevent,
}

// SAFETY: events may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: the driver locks an event.
unsafe impl Sync for Event {}

impl Event {
    pub(crate) fn new() -> Result<Self, BackendError> {
        let mut raw = ptr::null_mut();
        let flags = sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32;
        // SAFETY: the call writes a handle.
        check(unsafe { sys::cuEventCreate(&mut raw, flags) }, "making an event")?;
        Ok(Event { raw })
    }

    pub(crate) fn record(&self, stream: &Stream) -> Result<(), BackendError> {
        // SAFETY: both live.
        check(unsafe { sys::cuEventRecord(self.raw, stream.raw) }, "marking a stream")
    }

    pub(crate) fn synchronize(&self) -> Result<(), BackendError> {
        // SAFETY: an event that lives.
        check(unsafe { sys::cuEventSynchronize(self.raw) }, "waiting for the GPU")
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made in `new`; the driver keeps what is still in a stream.
        let _ = unsafe { sys::cuEventDestroy_v2(self.raw) };
    }
}

/// Host memory that the device reads and writes.
pub(crate) struct Pinned {
    pub(crate) host: *mut u8,
    pub(crate) device: u64,
    pub(crate) bytes: usize,
}

// SAFETY: plain memory; who reads and writes it is ordered by events.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

impl Pinned {
    pub(crate) fn new(bytes: usize) -> Result<Self, BackendError> {
        let (mut host, mut device) = (ptr::null_mut::<c_void>(), 0);
        // SAFETY: the calls write a pointer and an address; the memory is then zeroed, and no bytes are undefined.
        unsafe {
            let pinned = sys::cuMemHostAlloc(&mut host, bytes.max(1), sys::CU_MEMHOSTALLOC_DEVICEMAP);
            if pinned == sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
                let hint = "the host has no more to pin: lower --max-lanes";
                return Err(BackendError::OutOfMemory { what: "pinned host memory", bytes: bytes as u64, hint });
            }
            check(pinned, "pinning host memory")?;
            ptr::write_bytes(host.cast::<u8>(), 0, bytes.max(1));
            check(sys::cuMemHostGetDevicePointer_v2(&mut device, host, 0), "mapping host memory")?;
        }
        Ok(Pinned { host: host.cast(), device, bytes })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated in `new`.
        let _ = unsafe { sys::cuMemFreeHost(self.host.cast()) };
    }
}
