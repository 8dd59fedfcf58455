//! Approximate attention over unselected candidates.

use super::runtime::CpuRuntime;
use crate::{AlgorithmId, EstimateSource, Partial, View};

/// See [`crate::Runtime`].
pub(super) fn estimate(
    _rt: &CpuRuntime,
    _algorithm: AlgorithmId,
    _layer: usize,
    _source: EstimateSource<'_>,
    _q: View<'_>,
    _out: &Partial,
) {
    unreachable!("pending")
}
