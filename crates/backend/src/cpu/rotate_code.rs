//! Index of the sketch.

use super::runtime::CpuRuntime;
use crate::{AlgorithmId, BackendError, IndexUnits, Rotations, WeightPart};

/// See [`crate::Runtime`].
pub(super) fn rotate_code(
    _rt: &CpuRuntime,
    _algorithm: AlgorithmId,
    _layer: usize,
    _units: IndexUnits<'_>,
    _rotations: Rotations<'_>,
) {
    unreachable!("pending")
}

/// See [`crate::Runtime`].
pub(super) fn check_rotation(_parts: &[WeightPart<'_>]) -> Result<(), BackendError> {
    unreachable!("pending")
}
