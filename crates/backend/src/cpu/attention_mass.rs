//! How much of dense attention the exact tokens hold.

use super::runtime::CpuRuntime;
use crate::{AlgorithmId, Partial, View};

/// See [`crate::Runtime`].
pub(super) fn attention_mass(_rt: &CpuRuntime, _algorithm: AlgorithmId, _layer: usize, _q: View<'_>, _exact: &Partial) {
    unreachable!("pending")
}
