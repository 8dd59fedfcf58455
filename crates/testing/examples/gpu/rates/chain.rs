//! What a captured graph costs beside its kernels: a chain of kernels that do nothing.

use super::Table;
use super::card::check;
use cudarc::driver::sys;
use std::ffi::CString;
use std::ptr;
use std::time::Instant;

/// About as many as a decode step of 32 layers has.
const NODES: usize = 300;

/// Blocks and threads: as many as there are multiprocessors, about.
const BLOCKS: u32 = 132;
const THREADS: u32 = 256;

/// Launches of a round of the clock.
const LAUNCHES: usize = 100;

/// Rounds; the median counts.
const ROUNDS: usize = 7;

/// A kernel that returns at once.
const PLAIN: &str = ".version 8.0\n.target sm_80\n.address_size 64\n.visible .entry nothing() { ret; }\n";

/// One that may start before the kernel ahead has ended, and waits for it, as those of a decode step do.
const OVERLAPPING: &str = ".version 8.0\n.target sm_90\n.address_size 64\n.visible .entry nothing() {\n\
    griddepcontrol.launch_dependents;\ngriddepcontrol.wait;\nret;\n}\n";

/// One row a kind of dependency.
pub(crate) fn measure(table: &mut Table<'_>) {
    if !table.wants("empty kernels") {
        return;
    }
    for (how, source) in [("one after the other", PLAIN), ("overlapping", OVERLAPPING)] {
        if let Some(seconds) = seconds(source, source == OVERLAPPING) {
            table.note("empty kernels", &format!("a graph of {NODES}, {how}"), seconds);
        }
    }
}

/// Seconds of a chain; `None` where the card is older than the kernel.
fn seconds(source: &str, overlaps: bool) -> Option<f64> {
    let source = CString::new(source).expect("no zeros in a text");
    let (mut module, mut function, mut stream) = (ptr::null_mut(), ptr::null_mut(), ptr::null_mut());
    // SAFETY: the backend's context is current; PTX with a zero at its end; the calls write handles.
    unsafe {
        if sys::cuModuleLoadData(&mut module, source.as_ptr().cast()) != sys::CUresult::CUDA_SUCCESS {
            return None;
        }
        check(sys::cuModuleGetFunction(&mut function, module, c"nothing".as_ptr()));
        check(sys::cuStreamCreate(&mut stream, sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32));
    }
    let graph = capture(stream, function, overlaps);
    let run = || {
        let start = Instant::now();
        for _ in 0..LAUNCHES {
            // SAFETY: a graph and a stream that live.
            check(unsafe { sys::cuGraphLaunch(graph, stream) });
        }
        // SAFETY: as above.
        check(unsafe { sys::cuStreamSynchronize(stream) });
        start.elapsed().as_secs_f64() / LAUNCHES as f64
    };
    run();
    let seconds = super::bed::median((0..ROUNDS).map(|_| run()).collect());
    // SAFETY: made above, and nothing runs any more.
    unsafe {
        check(sys::cuGraphExecDestroy(graph));
        check(sys::cuStreamDestroy_v2(stream));
        check(sys::cuModuleUnload(module));
    }
    Some(seconds)
}

fn capture(stream: sys::CUstream, function: sys::CUfunction, overlaps: bool) -> sys::CUgraphExec {
    let mut attribute = sys::CUlaunchAttribute {
        id: sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        pad: [0; 4],
        value: sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
    };
    let config = sys::CUlaunchConfig {
        gridDimX: BLOCKS,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: THREADS,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: 0,
        hStream: stream,
        attrs: &mut attribute,
        numAttrs: overlaps.into(),
    };
    let (mut graph, mut runnable) = (ptr::null_mut(), ptr::null_mut());
    // SAFETY: handles that live; a kernel without arguments; the calls write handles.
    unsafe {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED;
        check(sys::cuStreamBeginCapture_v2(stream, mode));
        for _ in 0..NODES {
            check(sys::cuLaunchKernelEx(&config, function, ptr::null_mut(), ptr::null_mut()));
        }
        check(sys::cuStreamEndCapture(stream, &mut graph));
        check(sys::cuGraphInstantiateWithFlags(&mut runnable, graph, 0));
        check(sys::cuGraphDestroy(graph));
    }
    runnable
}
