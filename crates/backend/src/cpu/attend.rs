//! Exact attention over page lists.

use super::runtime::CpuRuntime;
use crate::{AlgorithmId, PageSource, Partial, View};

/// See [`crate::Runtime`].
pub(super) fn attend(
    _rt: &CpuRuntime,
    _algorithm: AlgorithmId,
    _layer: usize,
    _source: PageSource,
    _q: View<'_>,
    _out: &Partial,
) {
    unreachable!("pending")
}
