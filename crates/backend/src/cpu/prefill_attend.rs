//! Causal attention over staged tokens.

use super::runtime::CpuRuntime;
use crate::{Buffer, View};

/// See [`crate::Runtime`].
pub(super) fn prefill_attend(
    _rt: &CpuRuntime,
    _staging: &Buffer,
    _first: usize,
    _n: usize,
    _q: View<'_>,
    _out: View<'_>,
) {
    unreachable!("pending")
}
