//! Ops that work element by element or row by row.

use super::runtime::CpuRuntime;
use crate::{Batch, TokenSource, View, Weight};

/// See [`crate::Runtime`].
pub(super) fn embed(_rt: &CpuRuntime, _tokens: TokenSource<'_>, _table: &Weight, _out: View<'_>) {
    unreachable!("pending")
}

/// See [`crate::Runtime`].
pub(super) fn add_norm(
    _rt: &CpuRuntime,
    _batch: Batch,
    _x: View<'_>,
    _delta: Option<View<'_>>,
    _norm: &Weight,
    _eps: f32,
    _out: View<'_>,
) {
    unreachable!("pending")
}

/// See [`crate::Runtime`].
pub(super) fn silu_mul(_rt: &CpuRuntime, _batch: Batch, _gate_up: View<'_>, _out: View<'_>) {
    unreachable!("pending")
}
