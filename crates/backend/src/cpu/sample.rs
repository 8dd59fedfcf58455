//! Choosing tokens.

use super::runtime::CpuRuntime;
use crate::{SampleTarget, View};

/// See [`crate::Runtime`].
pub(super) fn sample(_rt: &CpuRuntime, _logits: View<'_>, _target: SampleTarget<'_>) {
    unreachable!("pending")
}
