//! The page list of a step.

use super::runtime::CpuRuntime;
use crate::AlgorithmId;

/// See [`crate::Runtime`].
pub(super) fn topk(_rt: &CpuRuntime, _algorithm: AlgorithmId) {
    unreachable!("pending")
}
