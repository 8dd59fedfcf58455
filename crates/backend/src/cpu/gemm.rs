//! Matrix products.

use super::runtime::CpuRuntime;
use super::threads::Threads;
use crate::{BackendError, Batch, View, Weight, WeightPart};

/// See [`crate::Runtime`].
pub(super) fn gemm(_rt: &CpuRuntime, _batch: Batch, _x: View<'_>, _weight: &Weight, _out: View<'_>) {
    unreachable!("pending")
}

/// See [`crate::Runtime`].
pub(super) fn pack(_threads: &Threads, _parts: &[WeightPart<'_>]) -> Result<Weight, BackendError> {
    unreachable!("pending")
}
