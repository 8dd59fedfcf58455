//! One layer's ops around attention, the same in prefill and in decode.

use super::Decoder;
use super::buffers::LayerBuffers;
use backend::{Batch, KvTarget, Runtime, View};

impl Decoder {
    /// Norms `x` (after adding what the layer before left) and makes q, k and v of it; q goes to the layer's buffer,
    /// k and v to `target`.
    pub(super) fn project(
        &self,
        runtime: &dyn Runtime,
        layer: usize,
        batch: Batch,
        x: View<'_>,
        delta: Option<View<'_>>,
        target: KvTarget<'_>,
        buffers: &LayerBuffers,
    ) {
        let weights = &self.weights.layers[layer];
        let normed = (&buffers.normed).into();
        runtime.add_norm(batch, x, delta, &weights.attention_norm, self.config.norm_eps, normed);
        runtime.gemm(batch, normed, &weights.qkv, (&buffers.qkv).into());
        let norms = self.head_norms(weights);
        runtime.qkv_append(layer, batch, (&buffers.qkv).into(), norms, target, (&buffers.q).into());
    }

    /// The layer's rest: adds attention's output to `x`, then leaves the MLP's in the layer's `delta`.
    pub(super) fn feed_forward(
        &self,
        runtime: &dyn Runtime,
        layer: usize,
        batch: Batch,
        attended: View<'_>,
        x: View<'_>,
        buffers: &LayerBuffers,
    ) {
        let weights = &self.weights.layers[layer];
        let (normed, delta) = ((&buffers.normed).into(), (&buffers.delta).into());
        runtime.gemm(batch, attended, &weights.attention_output, delta);
        runtime.add_norm(batch, x, Some(delta), &weights.mlp_norm, self.config.norm_eps, normed);
        runtime.gemm(batch, normed, &weights.gate_up, (&buffers.gate_up).into());
        runtime.silu_mul(batch, (&buffers.gate_up).into(), (&buffers.mlp).into());
        runtime.gemm(batch, (&buffers.mlp).into(), &weights.down, delta);
    }

    /// Logits of `x` after the last layer, with what that layer left to add (if it is not in `x` already).
    pub(super) fn output(
        &self,
        runtime: &dyn Runtime,
        batch: Batch,
        x: View<'_>,
        delta: Option<View<'_>>,
        buffers: &LayerBuffers,
        logits: View<'_>,
    ) {
        let normed = (&buffers.normed).into();
        runtime.add_norm(batch, x, delta, &self.weights.norm, self.config.norm_eps, normed);
        runtime.gemm(batch, normed, &self.weights.output, logits);
    }
}
