//! A decode step: every op from the lanes' last tokens to their next ones. No argument changes between steps
//! (invariant 11), so that a backend may capture the whole of it once per key.

use super::Decoder;
use backend::{Batch, IndexUnits, KvTarget, Runtime, SampleTarget, StepKey, TokenSource};

impl Decoder {
    /// See [`crate::Forward::decode`].
    pub(super) fn record_decode(&self, runtime: &dyn Runtime, key: StepKey) {
        let buffers = &self.decode;
        let x = (&buffers.x).into();
        runtime.embed(TokenSource::Lanes, &self.weights.embedding, x);
        for layer in 0..self.config.layers {
            let delta = (0 < layer).then(|| (&buffers.layer.delta).into());
            self.project(runtime, layer, Batch::Lanes, x, delta, KvTarget::Lanes, &buffers.layer);
            self.attend(runtime, layer, key);
            let attended = (&buffers.attend.exact.output).into();
            self.feed_forward(runtime, layer, Batch::Lanes, attended, x, &buffers.layer);
        }
        let delta = Some((&buffers.layer.delta).into());
        self.output(runtime, Batch::Lanes, x, delta, &buffers.layer, (&buffers.logits).into());
        runtime.sample((&buffers.logits).into(), SampleTarget::Lanes);
        for (id, algorithm) in self.algorithms.of(key.algorithms) {
            for layer in 0..self.config.layers {
                algorithm.index(runtime, id, layer, IndexUnits::Lanes);
            }
        }
    }

    /// Select, Retrieve and Attend of every algorithm present, each over its own lanes. Estimates need no page: they
    /// come first, for a device to fetch pages beside them.
    fn attend(&self, runtime: &dyn Runtime, layer: usize, key: StepKey) {
        let (q, buffers) = ((&self.decode.layer.q).into(), &self.decode.attend);
        for (id, algorithm) in self.algorithms.of(key.algorithms) {
            algorithm.select(runtime, id, layer, q);
            if key.retrieves && self.algorithms.specs().get(id).is_sparse() {
                runtime.resolve(id, layer);
                runtime.retrieve(id, layer);
            }
            let estimates = algorithm.estimate(runtime, id, layer, q, buffers);
            algorithm.attend(runtime, id, layer, q, buffers);
            if key.measure_mass {
                runtime.attention_mass(id, layer, q, &buffers.exact);
            }
            if estimates {
                runtime.merge(id, &buffers.exact, &buffers.rest);
            }
        }
    }
}
