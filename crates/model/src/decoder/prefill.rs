//! A prompt layer by layer: units of one layer and a token range, in strides that keep activations small.
//!
//! Nobody needs the last layer's output but the prompt's last token: its other tokens stop at K and V.

use super::Decoder;
use super::buffers::{PassBuffers, STRIDE_TOKENS};
use crate::forward::PassView;
use backend::{Batch, KvTarget, Runtime, SampleTarget, TokenSource, View};
use kv::LaneId;
use std::ops::Range;

impl Decoder {
    /// See [`crate::Forward::prefill_layer`].
    pub(super) fn record_prefill_layer(
        &self,
        runtime: &dyn Runtime,
        pass: &PassView<'_>,
        layer: usize,
        tokens: Range<usize>,
    ) {
        for start in tokens.clone().step_by(STRIDE_TOKENS) {
            let stride = start..tokens.end.min(start + STRIDE_TOKENS);
            self.stage(runtime, pass, layer, stride.clone());
            let q = |row| self.unit.layer.q.from_row(row);
            if layer + 1 < self.config.layers {
                self.attend_and_feed(runtime, pass, layer, stride.start, stride.len(), q(0));
                self.settle(runtime, pass, stride);
            } else if pass.last_pass && stride.end == pass.first + pass.tokens.len() {
                self.attend_and_feed(runtime, pass, layer, stride.end - 1, 1, q(stride.len() - 1));
            }
        }
    }

    /// The final norm and the output matrix for the prompt's last token, and a token for every lane.
    pub(super) fn record_prefill_sample(&self, runtime: &dyn Runtime, pass: &PassView<'_>, lanes: &[LaneId]) {
        let x = self.passes[pass.slot].x.from_row(pass.tokens.len() - 1);
        let logits = (&self.unit.logits).into();
        self.output(runtime, Batch::Tokens(1), x, &self.unit.layer, logits);
        runtime.sample(logits, SampleTarget::Prefill(lanes));
    }

    /// q, and K and V in staging, of one stride.
    fn stage(&self, runtime: &dyn Runtime, pass: &PassView<'_>, layer: usize, stride: Range<usize>) {
        let PassBuffers { x, staging } = &self.passes[pass.slot];
        let local = stride.start - pass.first..stride.end - pass.first;
        let x = x.from_row(local.start);
        if layer == 0 {
            runtime.embed(TokenSource::Given(&pass.tokens[local]), &self.weights.embedding, x);
        }
        let target = KvTarget::Staging { staging, first: stride.start };
        self.project(runtime, layer, Batch::Tokens(stride.len()), x, None, target, &self.unit.layer);
    }

    /// Adds the MLP's output to the residual stream: the next layer comes when other strides have used the buffer. (The
    /// norm that the op makes beside it is not used; an op of its own would save nothing that can be measured.)
    fn settle(&self, runtime: &dyn Runtime, pass: &PassView<'_>, stride: Range<usize>) {
        let x = self.passes[pass.slot].x.from_row(stride.start - pass.first);
        let (delta, normed) = ((&self.unit.layer.delta).into(), (&self.unit.layer.normed).into());
        let norm = &self.weights.norm;
        runtime.add_norm(Batch::Tokens(stride.len()), x, Some(delta), norm, self.config.norm_eps, normed);
    }

    /// Attention and MLP of `n` tokens from position `first` on, whose queries are `q`.
    fn attend_and_feed(
        &self,
        runtime: &dyn Runtime,
        pass: &PassView<'_>,
        layer: usize,
        first: usize,
        n: usize,
        q: View<'_>,
    ) {
        let PassBuffers { x, staging } = &self.passes[pass.slot];
        let x = x.from_row(first - pass.first);
        let attended = (&self.unit.attended).into();
        runtime.prefill_attend(staging, first, n, q, attended);
        self.feed_forward(runtime, layer, Batch::Tokens(n), attended, x, &self.unit.layer);
    }
}
