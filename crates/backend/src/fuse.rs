//! What every backend checks of a weight's parts before it fuses them.

use crate::sketch::SketchFrame;
use crate::{BackendError, Tensor, WeightPart};

/// The shape of a fused weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fused {
    /// `[out, in]` of each part.
    pub shapes: Vec<[usize; 2]>,
    /// Of all parts together.
    pub outputs: usize,
    /// The same of every part.
    pub inputs: usize,
}

impl Fused {
    /// Of these parts, one below the other.
    ///
    /// # Errors
    /// No parts; a part that is no matrix, whose bias has another length or whose inputs differ, by name.
    pub fn of(parts: &[WeightPart<'_>]) -> Result<Self, BackendError> {
        let shapes = parts.iter().map(checked_shape).collect::<Result<Vec<_>, _>>()?;
        let (Some(&[_, inputs]), outputs) = (shapes.first(), shapes.iter().map(|s| s[0]).sum::<usize>()) else {
            return Err(BackendError::Unsupported { what: "a weight of no parts".into(), supported: "one or more" });
        };
        if let Some((part, shape)) = parts.iter().zip(&shapes).find(|(_, shape)| shape[1] != inputs) {
            return Err(BackendError::Unsupported {
                what: format!(
                    "{} of {} inputs beside {} of {inputs}",
                    part.weight.name, shape[1], parts[0].weight.name
                ),
                supported: "parts of one weight have the same inputs",
            });
        }
        Ok(Fused { shapes, outputs, inputs })
    }
}

/// `[out, in]` of a part, its bias and the number of its elements checked.
fn checked_shape(part: &WeightPart<'_>) -> Result<[usize; 2], BackendError> {
    let refuse = |tensor: &Tensor<'_>, supported| BackendError::Unsupported {
        what: format!("{} of shape {:?}", tensor.name, tensor.shape),
        supported,
    };
    let shape = match part.weight.shape[..] {
        [out, input] if out > 0 && input > 0 => [out, input],
        _ => return Err(refuse(&part.weight, "a matrix [out, in]")),
    };
    if part.weight.data.len() != part.weight.elements() {
        return Err(refuse(&part.weight, "as many elements as the shape says"));
    }
    match &part.bias {
        Some(bias) if bias.data.len() != shape[0] => Err(refuse(bias, "a bias of one element per output")),
        _ => Ok(shape),
    }
}

/// The parts' biases one after the other, zeros where a part has none; `None` where no part has one.
pub fn fused_bias(parts: &[WeightPart<'_>], shapes: &[[usize; 2]]) -> Option<Vec<f32>> {
    if parts.iter().all(|part| part.bias.is_none()) {
        return None;
    }
    let mut bias = Vec::new();
    for (part, shape) in parts.iter().zip(shapes) {
        match &part.bias {
            Some(part) => bias.extend(part.data.to_f32()),
            None => bias.resize(bias.len() + shape[0], 0.0),
        }
    }
    Some(bias)
}

/// What `prepare_weight` accepts as a rotation: one f32 `[kv_heads, d, d]`, 48 <= d, each R R^T within 1e-3 of I.
///
/// # Errors
/// Anything else, by name.
pub fn check_rotation(parts: &[WeightPart<'_>]) -> Result<(), BackendError> {
    let refuse = |what: String, supported| Err(BackendError::Unsupported { what, supported });
    let [part] = parts else {
        return refuse(format!("a rotation of {} parts", parts.len()), "one tensor [kv_heads, d, d]");
    };
    let (name, shape) = (&part.weight.name, &part.weight.shape);
    let [_, d, input] = shape[..] else {
        return refuse(format!("rotation {name} of shape {shape:?}"), "[kv_heads, d, d]");
    };
    if d != input || part.weight.elements() != part.weight.data.len() || part.bias.is_some() {
        return refuse(format!("rotation {name} of shape {shape:?}"), "[kv_heads, d, d], no bias");
    }
    if d < SketchFrame::HEAD_DIM_LEAST {
        return refuse(format!("a sketch of head_dim {d} ({name})"), "head_dim from 48 on: a frame holds 48 tokens");
    }
    let elements = part.weight.data.to_f32();
    for (head, rotation) in elements.chunks_exact(d * d).enumerate() {
        for (i, a) in rotation.chunks_exact(d).enumerate() {
            for (j, b) in rotation.chunks_exact(d).enumerate().take(i + 1) {
                let product: f32 = a.iter().zip(b).map(|(a, b)| a * b).sum();
                let off = (product - if i == j { 1.0 } else { 0.0 }).abs();
                if off.is_nan() || off > 1e-3 {
                    let what = format!("rotation {name}, KV head {head}: R R^T differs from I by {off} at [{i}, {j}]");
                    return refuse(what, "orthogonal matrices, within 1e-3");
                }
            }
        }
    }
    Ok(())
}
