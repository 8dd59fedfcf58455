//! Staging to rows and back.

use super::runtime::CpuRuntime;
use crate::Buffer;
use kv::RowId;
use std::ops::Range;

/// See [`crate::Runtime`].
pub(super) fn scatter_layer(
    _rt: &CpuRuntime,
    _staging: &Buffer,
    _layer: usize,
    _tokens: Range<usize>,
    _kv_rows: &[RowId],
) {
    unreachable!("pending")
}

/// See [`crate::Runtime`].
pub(super) fn gather_layer(
    _rt: &CpuRuntime,
    _staging: &Buffer,
    _layer: usize,
    _tokens: Range<usize>,
    _kv_rows: &[RowId],
) {
    unreachable!("pending")
}
