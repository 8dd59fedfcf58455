//! Weights of seeded noise, for measurements of speed: element `i` is a function of (seed, i) on every device.

use crate::{Tensor, TensorData, WeightPart, WeightRole};
use half::bf16;

/// A tensor of noise.
pub(super) struct Noise {
    shape: [usize; 2],
    ones: bool,
    seed: u64,
}

impl Noise {
    /// Of a weight: norms are all ones.
    pub(super) fn of(role: WeightRole, shape: [usize; 2], seed: u64) -> Self {
        Noise { shape, ones: role == WeightRole::Norm, seed }
    }

    /// As the one part of a weight; its bias is zero, which costs as much as any.
    pub(super) fn part(&self, bias: bool) -> WeightPart<'static> {
        let [out, input] = self.shape;
        let elements: Vec<bf16> = match self.ones {
            true => vec![bf16::ONE; out * input],
            false => (0..out * input).map(|i| bf16::from_f32(element(self.seed, i as u64, input))).collect(),
        };
        let tensor = |name: &str, shape: Vec<usize>, data| Tensor { name: name.to_string(), shape, data };
        let shape = if self.ones { vec![out * input] } else { vec![out, input] };
        WeightPart {
            weight: tensor("random weight", shape, TensorData::Bf16(elements.into())),
            bias: bias.then(|| tensor("random bias", vec![out], TensorData::F32(vec![0.0; out].into()))),
        }
    }
}

/// Uniform with deviation `1 / sqrt(inputs)`: 32 bits of a mixed counter (the finisher of MurmurHash3).
fn element(seed: u64, i: u64, inputs: usize) -> f32 {
    let mut x = (seed ^ i.wrapping_mul(0x9e37_79b9_7f4a_7c15)) as u32 ^ ((seed ^ i) >> 32) as u32;
    x = (x ^ x >> 16).wrapping_mul(0x85eb_ca6b);
    x = (x ^ x >> 13).wrapping_mul(0xc2b2_ae35);
    x ^= x >> 16;
    let unit = x as f32 / 2.0_f32.powi(31) - 1.0;
    unit * (3.0 / inputs as f32).sqrt()
}
