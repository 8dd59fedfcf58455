//! One page score per KV head.

use super::runtime::CpuRuntime;
use crate::AlgorithmId;

/// See [`crate::Runtime`].
pub(super) fn group_reduce(_rt: &CpuRuntime, _algorithm: AlgorithmId) {
    unreachable!("pending")
}
