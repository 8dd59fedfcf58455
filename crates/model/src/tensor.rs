//! The elements of a tensor out of the bytes of a file, borrowed where the file's own type and alignment allow.

use half::bf16;
use std::borrow::Cow;

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
