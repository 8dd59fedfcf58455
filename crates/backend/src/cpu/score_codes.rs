//! Scores of coded tokens.

use super::runtime::CpuRuntime;
use crate::{AlgorithmId, View, Weight};

/// See [`crate::Runtime`].
pub(super) fn score_codes(
    _rt: &CpuRuntime,
    _algorithm: AlgorithmId,
    _layer: usize,
    _q: View<'_>,
    _key_rotation: &Weight,
) {
    unreachable!("pending")
}
