//! Index of mean keys.

use super::runtime::CpuRuntime;
use crate::{AlgorithmId, IndexUnits, VectorSummary};

/// See [`crate::Runtime`].
pub(super) fn pool_mean(
    _rt: &CpuRuntime,
    _algorithm: AlgorithmId,
    _layer: usize,
    _units: IndexUnits<'_>,
    _form: VectorSummary,
) {
    unreachable!("pending")
}
