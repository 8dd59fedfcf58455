//! A host tensor on its way to `prepare_weight`: borrowed from a file mapping where it can be.

use half::bf16;
use std::borrow::Cow;

/// A named host tensor, row-major.
#[derive(Clone, Debug)]
pub struct Tensor<'a> {
    /// Name in the checkpoint, for error messages.
    pub name: String,
    /// Extents, outermost first; a matrix is `[out, in]`.
    pub shape: Vec<usize>,
    /// Elements, as many as the product of `shape`.
    pub data: TensorData<'a>,
}

/// Elements of a [`Tensor`].
#[derive(Clone, Debug)]
pub enum TensorData<'a> {
    /// Matrices.
    Bf16(Cow<'a, [bf16]>),
    /// Norm weights, biases, rotations.
    F32(Cow<'a, [f32]>),
}

impl Tensor<'_> {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }
}

impl TensorData<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            TensorData::Bf16(x) => x.len(),
            TensorData::F32(x) => x.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements in f32 (exact from bf16).
    pub fn to_f32(&self) -> Vec<f32> {
        match self {
            TensorData::Bf16(x) => x.iter().map(|v| v.to_f32()).collect(),
            TensorData::F32(x) => x.to_vec(),
        }
    }

    /// The elements rounded to bf16 (nearest, ties to even).
    pub fn to_bf16(&self) -> Cow<'_, [bf16]> {
        match self {
            TensorData::Bf16(x) => Cow::Borrowed(x),
            TensorData::F32(x) => x.iter().map(|v| bf16::from_f32(*v)).collect(),
        }
    }
}
