//! One tensor in host memory, as a checkpoint gives it.

use std::borrow::Cow;

use half::bf16;

/// A named tensor, row-major, outermost dimension first. Borrowed from the mapped file where the file's own type
/// allows.
#[derive(Clone, Debug)]
pub struct HostTensor<'a> {
    /// Its Hugging Face name.
    pub name: String,
    /// `[rows, columns]` of a matrix (rows are outputs), `[n]` of a norm or bias.
    pub shape: Vec<usize>,
    /// The values.
    pub data: TensorData<'a>,
}

/// The values of a [`HostTensor`].
#[derive(Clone, Debug)]
pub enum TensorData<'a> {
    /// Stored as bf16.
    Bf16(Cow<'a, [bf16]>),
    /// Stored as f32, or widened or dequantised to it without loss.
    F32(Cow<'a, [f32]>),
}

impl<'a> HostTensor<'a> {
    /// Number of values.
    pub fn len(&self) -> usize {
        match &self.data {
            TensorData::Bf16(values) => values.len(),
            TensorData::F32(values) => values.len(),
        }
    }

    /// Whether it has no values.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The values as bf16, f32 rounded to nearest even; free if they are stored so.
    pub fn to_bf16(&self) -> Cow<'_, [bf16]> {
        match &self.data {
            TensorData::Bf16(values) => Cow::Borrowed(values),
            TensorData::F32(values) => Cow::Owned(round(values)),
        }
    }

    /// Like [`HostTensor::to_bf16`], keeping the borrow of the file.
    pub fn into_bf16(self) -> Cow<'a, [bf16]> {
        match self.data {
            TensorData::Bf16(values) => values,
            TensorData::F32(values) => Cow::Owned(round(&values)),
        }
    }

    /// The values as f32, exactly.
    pub fn to_f32(&self) -> Cow<'_, [f32]> {
        match &self.data {
            TensorData::Bf16(values) => Cow::Owned(values.iter().map(|value| value.to_f32()).collect()),
            TensorData::F32(values) => Cow::Borrowed(values),
        }
    }
}

fn round(values: &[f32]) -> Vec<bf16> {
    values.iter().map(|value| bf16::from_f32(*value)).collect()
}

/// bf16 values stored little-endian: borrowed if they are aligned and this machine has the file's byte order.
pub(crate) fn bf16_from_bytes(bytes: &[u8]) -> Cow<'_, [bf16]> {
    if cfg!(target_endian = "little") {
        // SAFETY: bf16 is a transparent u16, for which every bit pattern is valid; align_to gives only whole, aligned
        // values.
        let (before, values, after) = unsafe { bytes.align_to::<bf16>() };
        if before.is_empty() && after.is_empty() {
            return Cow::Borrowed(values);
        }
    }
    let pairs = bytes.as_chunks::<2>().0;
    Cow::Owned(pairs.iter().map(|pair| bf16::from_le_bytes(*pair)).collect())
}

/// f32 values stored little-endian: borrowed under the same conditions.
pub(crate) fn f32_from_bytes(bytes: &[u8]) -> Cow<'_, [f32]> {
    if cfg!(target_endian = "little") {
        // SAFETY: every bit pattern is a valid f32; align_to gives only whole, aligned values.
        let (before, values, after) = unsafe { bytes.align_to::<f32>() };
        if before.is_empty() && after.is_empty() {
            return Cow::Borrowed(values);
        }
    }
    Cow::Owned(bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect())
}

/// f16 values stored little-endian, widened.
pub(crate) fn f32_from_f16_bytes(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<2>().0.iter().map(|pair| half::f16::from_le_bytes(*pair).to_f32()).collect()
}
