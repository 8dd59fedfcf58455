//! Partials joined by log-sum-exp.

use super::runtime::CpuRuntime;
use crate::{AlgorithmId, Partial};

/// See [`crate::Runtime`].
pub(super) fn merge(_rt: &CpuRuntime, _algorithm: AlgorithmId, _into: &Partial, _other: &Partial) {
    unreachable!("pending")
}
