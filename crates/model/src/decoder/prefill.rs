//! A prompt layer by layer: units of one layer and a token range, in strides that keep activations small.
//!
//! Nobody needs the last layer's output but the prompt's last token: its other tokens stop at K and V, unless the
//! prompt's log-probabilities are asked for.

use super::Decoder;
use super::buffers::SCORE_ROWS;
use crate::forward::{PassView, ScoreView};
use backend::{Batch, KvTarget, Runtime, SampleTarget, TokenSource};
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
        for start in tokens.clone().step_by(self.stride_tokens) {
            let stride = start..tokens.end.min(start + self.stride_tokens);
            self.stage(runtime, pass, layer, stride.clone());
            let last_layer = layer + 1 == self.config.layers;
            let end = pass.first + pass.tokens.len();
            if last_layer && let Some(score) = pass.score {
                self.finish_layer(runtime, pass, layer, stride.clone(), 0);
                self.score(runtime, pass, score, stride);
            } else if last_layer && pass.last_pass && stride.end == end {
                self.finish_layer(runtime, pass, layer, end - 1..end, stride.len() - 1);
            } else if !last_layer {
                self.finish_layer(runtime, pass, layer, stride, 0);
            }
        }
    }

    /// The final norm and the output matrix for positions `tokens` that have a target, block by block: the logits of a
    /// whole prompt would not fit.
    fn score(&self, runtime: &dyn Runtime, pass: &PassView<'_>, score: ScoreView<'_>, tokens: Range<usize>) {
        let end = (tokens.end - pass.first).min(score.targets.len());
        for start in (tokens.start - pass.first..end).step_by(SCORE_ROWS) {
            let targets = &score.targets[start..end.min(start + SCORE_ROWS)];
            let (x, logits) = (self.passes[pass.slot].x.from_row(start), (&self.unit.logits).into());
            self.output(runtime, Batch::Tokens(targets.len()), x, None, &self.unit.layer, logits);
            runtime.score_tokens(logits, targets, score.top);
        }
    }

    /// The final norm and the output matrix for the prompt's last token, and a token for every lane.
    pub(super) fn record_prefill_sample(&self, runtime: &dyn Runtime, pass: &PassView<'_>, lanes: &[LaneId]) {
        let x = self.passes[pass.slot].x.from_row(pass.tokens.len() - 1);
        let logits = (&self.unit.logits).into();
        self.output(runtime, Batch::Tokens(1), x, None, &self.unit.layer, logits);
        runtime.sample(logits, SampleTarget::Prefill(lanes));
    }

    /// q, and K and V in staging, of one stride.
    fn stage(&self, runtime: &dyn Runtime, pass: &PassView<'_>, layer: usize, stride: Range<usize>) {
        let buffers = &self.passes[pass.slot];
        let (x, staging) = (&buffers.x, buffers.staging(layer));
        let local = stride.start - pass.first..stride.end - pass.first;
        let x = x.from_row(local.start);
        if layer == 0 {
            runtime.embed(TokenSource::Given(&pass.tokens[local]), &self.weights.embedding, x);
        }
        let target = KvTarget::Staging { staging, first: stride.start };
        self.project(runtime, layer, Batch::Tokens(stride.len()), x, None, target, &self.unit.layer);
    }

    /// Attention and MLP of positions `tokens`, whose queries begin at row `q_row` of the buffer. The residual
    /// stream has all of the layer afterwards: whatever runs next may use the unit's buffers. (The norm that the last
    /// op makes beside its sum is not used; an op of its own would save nothing that can be measured.)
    fn finish_layer(
        &self,
        runtime: &dyn Runtime,
        pass: &PassView<'_>,
        layer: usize,
        tokens: Range<usize>,
        q_row: usize,
    ) {
        let buffers = &self.passes[pass.slot];
        let (x, staging) = (&buffers.x, buffers.staging(layer));
        let (n, x) = (tokens.len(), x.from_row(tokens.start - pass.first));
        let (q, attended) = (self.unit.layer.q.from_row(q_row), (&self.unit.attended).into());
        runtime.prefill_attend(staging, tokens.start, n, q, attended);
        self.feed_forward(runtime, layer, Batch::Tokens(n), attended, x, &self.unit.layer);
        let (delta, normed) = ((&self.unit.layer.delta).into(), (&self.unit.layer.normed).into());
        runtime.add_norm(Batch::Tokens(n), x, Some(delta), &self.weights.norm, self.config.norm_eps, normed);
    }
}
