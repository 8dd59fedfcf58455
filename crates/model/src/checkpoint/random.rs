//! Weights of seeded noise: the shapes of a model without its files.
//!
//! The backend makes them on its device; a weight's seed follows from its name, so that no two are alike.

use std::collections::BTreeMap;

use crate::{Error, ModelConfig};
use backend::{Backend, Weight, WeightRole};

/// The shapes of a model's tensors, by name.
pub(super) struct RandomWeights {
    shapes: BTreeMap<String, Vec<usize>>,
    seed: u64,
}

impl RandomWeights {
    pub(super) fn new(config: &ModelConfig, seed: u64) -> Self {
        Self { shapes: config.tensors().into_iter().map(|spec| (spec.name, spec.shape)).collect(), seed }
    }

    /// A weight in the shape of the tensors `NAME.weight` of `names`, one below the other.
    pub(super) fn prepare(
        &self,
        backend: &dyn Backend,
        role: WeightRole,
        names: &[&str],
        bias: bool,
    ) -> Result<Weight, Error> {
        let mut shape = [0, 0];
        for name in names {
            let [out, input] = match self.shape(&format!("{name}.weight"))? {
                &[out, input] => [out, input],
                vector => [1, vector.iter().product()],
            };
            shape = [shape[0] + out, input];
        }
        Ok(backend.random_weight(role, shape, bias, self.seed_of(names[0]))?)
    }

    pub(super) fn bytes(&self, name: &str) -> Result<u64, Error> {
        Ok(2 * self.shape(name)?.iter().product::<usize>() as u64)
    }

    pub(super) fn missing(&self, name: &str) -> Error {
        Error::MissingTensor { file: "a model of random weights".to_owned(), name: name.to_owned() }
    }

    fn shape(&self, name: &str) -> Result<&[usize], Error> {
        self.shapes.get(name).map(Vec::as_slice).ok_or_else(|| self.missing(name))
    }

    /// FNV-1a over the name, from the model's seed on.
    fn seed_of(&self, name: &str) -> u64 {
        let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        name.bytes().fold(0xcbf2_9ce4_8422_2325 ^ self.seed, step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use backend::cpu::{CpuBackend, CpuOptions};
    use std::collections::BTreeSet;
    use std::path::Path;

    fn config(name: &str) -> ModelConfig {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../testing/golden/tiny").join(name).join("config.json");
        let json = std::fs::read(&file).expect("it is in the repository");
        ModelConfig::from_hugging_face(&json, "config.json", name).expect("it is a configuration")
    }

    #[test]
    fn no_two_weights_are_alike() {
        let (one, other) = (RandomWeights::new(&config("qwen2"), 1), RandomWeights::new(&config("qwen2"), 2));
        let names: Vec<&String> = one.shapes.keys().collect();
        let seeds: BTreeSet<u64> = names.iter().flat_map(|name| [one.seed_of(name), other.seed_of(name)]).collect();
        assert_eq!(seeds.len(), 2 * names.len());
    }

    #[test]
    fn fused_weights_have_the_shape_of_all_parts() {
        let backend = CpuBackend::new(CpuOptions { threads: 1, ..CpuOptions::default() }).expect("a CPU");
        let weights = RandomWeights::new(&config("llama"), 1);
        let check = |role, names: &[&str], expected: [usize; 2]| {
            let weight = weights.prepare(&backend, role, names, false).expect("there is memory");
            assert_eq!([weight.out_features(), weight.in_features()], expected, "{names:?}");
        };
        let part = |name: &str| format!("model.layers.1.self_attn.{name}");
        let (q, k, v) = (part("q_proj"), part("k_proj"), part("v_proj"));
        check(WeightRole::Qkv, &[&q, &k, &v], [128, 64]);
        check(WeightRole::Norm, &["model.norm"], [1, 64]);
        let unknown = weights.prepare(&backend, WeightRole::Output, &["lm_head"], false).expect_err("it is tied");
        assert!(unknown.to_string().contains("no tensor lm_head.weight"), "{unknown}");
    }
}
