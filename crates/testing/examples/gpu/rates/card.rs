//! The ceilings of this card, measured.

use backend::{Backend, Batch, WeightRole};
use cuda::CudaBackend;
use cudarc::driver::sys::{self, CUresult};
use std::sync::Arc;
use std::time::Instant;

use super::bed::{Bed, BedSpec};

/// Bytes of the copy; far more than any cache.
const COPY_BYTES: usize = 2 << 30;

/// Rows, columns and depth of the product.
const SIDE: usize = 8192;

/// Runs of each measurement.
const RUNS: usize = 7;

/// What the card reaches.
pub(crate) struct Card {
    /// Bytes a second, read and written together, of a copy on the device.
    pub(crate) copy_bytes: f64,
    /// Operations a second of a large bf16 matrix product.
    pub(crate) product_flops: f64,
}

impl Card {
    /// Measures both; the backend's context is this thread's.
    pub(crate) fn measure(backend: &Arc<CudaBackend>) -> Self {
        Card { copy_bytes: copy(), product_flops: product(backend) }
    }
}

fn copy() -> f64 {
    let [source, target] = [0, 1].map(|_| {
        let mut pointer = 0;
        // SAFETY: the backend's context is current; the call writes an address.
        check(unsafe { sys::cuMemAlloc_v2(&mut pointer, COPY_BYTES) });
        pointer
    });
    let mut best = f64::MAX;
    for _ in 0..RUNS {
        let start = Instant::now();
        for _ in 0..4 {
            // SAFETY: both arrays have these bytes.
            check(unsafe { sys::cuMemcpyDtoDAsync_v2(target, source, COPY_BYTES, std::ptr::null_mut()) });
        }
        // SAFETY: the context is current.
        check(unsafe { sys::cuCtxSynchronize() });
        best = best.min(start.elapsed().as_secs_f64() / 4.0);
    }
    for pointer in [source, target] {
        // SAFETY: allocated above, and nothing uses it any more.
        check(unsafe { sys::cuMemFree_v2(pointer) });
    }
    2.0 * COPY_BYTES as f64 / best
}

pub(crate) fn check(result: CUresult) {
    assert_eq!(result, CUresult::CUDA_SUCCESS, "the driver refuses");
}

fn product(backend: &Arc<CudaBackend>) -> f64 {
    let bed = Bed::new(backend, BedSpec::SMALL);
    let weight = backend.random_weight(WeightRole::Down, [SIDE, SIDE], false, 1).expect("a weight");
    let [x, out] = [0, 1].map(|_| backend.product_buffer("a test", SIDE, SIDE).expect("a buffer"));
    bed.write(&x, 2);
    let record = |_| bed.runtime.gemm(Batch::Tokens(SIDE), (&x).into(), &weight, (&out).into());
    2.0 * (SIDE as f64).powi(3) / bed.unit_seconds(1.5e-3, &record)
}
