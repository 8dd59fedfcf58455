//! The sketch, Spindle's own: every token at 2 bits on the fast tier, the pages that matter exact, all the rest
//! attended through its codes. Keys and values are rotated by fixed orthogonal matrices first, which spreads outliers
//! over the channels.

use crate::{Algorithm, AlgorithmSpec, AttendBuffers, StepReads};
use backend::sketch::SketchFrame;
use backend::{
    AlgorithmId, Backend, BackendError, EstimateSource, IndexUnits, Rotations, Runtime, Tensor, TensorData, View,
    Weight, WeightPart, WeightRole,
};
use kv::Geometry;
use kv::geometry::{ELEMENT_BYTES, SKETCH_TOKENS};

pub(crate) const NAME: &str = "sketch";

pub(crate) struct Sketch {
    /// One pair a layer.
    rotations: Vec<[Weight; 2]>,
}

impl Sketch {
    pub(crate) fn spec(geometry: Geometry) -> AlgorithmSpec {
        // Scores read a group's key half; the estimate reads its value half whole, selected pages included.
        let frame = SketchFrame { head_dim: geometry.head_dim };
        let group_bytes = frame.value_statistics() + 2 * ELEMENT_BYTES * SKETCH_TOKENS;
        AlgorithmSpec {
            name: NAME,
            index_unit_tokens: SKETCH_TOKENS,
            summary_row_tokens: Some(SKETCH_TOKENS),
            sink_tokens: kv::PAGE_TOKENS,
            window_tokens: 64,
            budget: 0.008,
            reads: StepReads::new(geometry, group_bytes, 0),
        }
    }

    /// With one (key, value) pair of rotations per layer.
    pub(crate) fn new(rotations: Vec<[Weight; 2]>) -> Self {
        Sketch { rotations }
    }
}

impl Algorithm for Sketch {
    fn index(&self, runtime: &dyn Runtime, id: AlgorithmId, layer: usize, units: IndexUnits<'_>) {
        let [key, value] = &self.rotations[layer];
        runtime.rotate_code(id, layer, units, Rotations { key, value });
    }

    fn select(&self, runtime: &dyn Runtime, id: AlgorithmId, layer: usize, q: View<'_>) {
        runtime.score_codes(id, layer, q, &self.rotations[layer][0]);
        runtime.group_reduce(id);
        runtime.topk(id);
    }

    fn estimate(
        &self,
        runtime: &dyn Runtime,
        id: AlgorithmId,
        layer: usize,
        q: View<'_>,
        buffers: &AttendBuffers,
    ) -> bool {
        let source = EstimateSource::Codes { value_rotation: &self.rotations[layer][1] };
        runtime.estimate(id, layer, source, q, &buffers.rest);
        true
    }
}

/// The default rotations of every layer, prepared: the same for keys, values and every layer.
///
/// # Errors
/// No memory.
pub(crate) fn default_rotations(backend: &dyn Backend, geometry: Geometry) -> Result<Vec<[Weight; 2]>, BackendError> {
    let elements = default_rotation(geometry.head_dim).repeat(geometry.kv_heads);
    let weight = backend.prepare_weight(WeightRole::Rotation, &rotation_parts(geometry, elements))?;
    Ok(vec![[weight.clone(), weight]; geometry.layers])
}

/// A rotation weight's one part: `[kv_heads, d, d]`, rows as output channels.
pub fn rotation_parts(geometry: Geometry, elements: Vec<f32>) -> [WeightPart<'static>; 1] {
    let weight = Tensor {
        name: "sketch rotation".to_string(),
        shape: vec![geometry.kv_heads, geometry.head_dim, geometry.head_dim],
        data: TensorData::F32(elements.into()),
    };
    [WeightPart { weight, bias: None }]
}

/// `(O_m (x) H_p) diag(s)`, `[d, d]` row-major, d = m p with p the largest power of two in d: `H_p` the Sylvester
/// matrix over sqrt(p), `O_m` 1 or the orthonormal DCT-II, `s_i` = +1 if bit 16 of `i * 2654435761` (in 32 bits)
/// is set, else -1.
pub fn default_rotation(d: usize) -> Vec<f32> {
    let p = 1 << d.trailing_zeros();
    let m = d / p;
    let dct = |row: usize, col: usize| match (m, row) {
        (1, _) => 1.0,
        (_, 0) => (1.0 / m as f64).sqrt(),
        _ => {
            let angle = std::f64::consts::PI * (col as f64 + 0.5) * row as f64 / m as f64;
            (2.0 / m as f64).sqrt() * angle.cos()
        }
    };
    let hadamard = |row: usize, col: usize| if (row & col).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
    let sign = |i: usize| if (i as u32).wrapping_mul(2_654_435_761) >> 16 & 1 == 1 { 1.0 } else { -1.0 };
    let element = |row: usize, col: usize| {
        let value: f64 = dct(row / p, col / p) * hadamard(row % p, col % p) / (p as f64).sqrt() * sign(col);
        value as f32
    };
    (0..d * d).map(|i| element(i / d, i % d)).collect()
}

#[cfg(test)]
mod tests {
    use super::default_rotation;

    #[test]
    fn the_default_rotation_is_orthogonal_and_spreads_every_channel() {
        for d in [48, 64, 80, 96, 112, 128, 256] {
            let r = default_rotation(d);
            for a in 0..d {
                for b in 0..=a {
                    let dot: f64 = (0..d).map(|i| f64::from(r[a * d + i]) * f64::from(r[b * d + i])).sum();
                    let want = f64::from(u8::from(a == b));
                    assert!((dot - want).abs() < 1e-5, "d = {d}: rows {a} and {b} have product {dot}");
                }
            }
            let largest = r.iter().fold(0.0_f32, |a, x| a.max(x.abs()));
            assert!(largest < 3.0 / (d as f32).sqrt(), "d = {d}: an element of {largest} does not spread");
        }
    }
}
