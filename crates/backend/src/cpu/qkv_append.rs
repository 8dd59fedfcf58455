//! Head norms, rotary embedding, K and V to their place.

use super::runtime::CpuRuntime;
use crate::{Batch, HeadNorms, KvTarget, View};

/// See [`crate::Runtime`].
pub(super) fn qkv_append(
    _rt: &CpuRuntime,
    _layer: usize,
    _batch: Batch,
    _qkv: View<'_>,
    _norms: Option<HeadNorms<'_>>,
    _target: KvTarget<'_>,
    _q: View<'_>,
) {
    unreachable!("pending")
}
