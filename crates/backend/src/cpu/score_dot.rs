//! Scores of mean keys.

use super::runtime::CpuRuntime;
use crate::{AlgorithmId, VectorSummary, View};

/// See [`crate::Runtime`].
pub(super) fn score_dot(_rt: &CpuRuntime, _algorithm: AlgorithmId, _layer: usize, _q: View<'_>, _form: VectorSummary) {
    unreachable!("pending")
}
