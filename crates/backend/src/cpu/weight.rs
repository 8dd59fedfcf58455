//! Prepared weights.

use super::array::Array;

/// Output columns of one packed panel.
pub const PANEL: usize = 16;

/// A packed matrix `[out, in]`: `[out / 16][in][16]` bf16, the last panel padded with zeros.
///
/// Inside the 16 of one input, outputs are interleaved `0, 8, 1, 9, ...`: a 32-bit lane holds outputs `j` (low half)
/// and `j + 8` (high half), so one load, one shift and one mask give both halves in f32.
pub struct Matrix {
    /// Packed elements.
    pub panels: Array<u16>,
    /// `out`, padded to whole panels; zeros where the weight has none.
    pub bias: Option<Array<f32>>,
    /// Output features.
    pub out_features: usize,
    /// Input features.
    pub in_features: usize,
}

/// A norm's weights or a rotation, f32, row-major.
pub struct Vector {
    /// The elements.
    pub elements: Array<f32>,
}
