//! The sketch's coding (algorithms 5b): where things lie in a frame, thresholds and levels, shared by every backend.
//!
//! One summary frame holds a group of 48 tokens, six pages at absolute positions, of one (layer, KV head):
//! ```text
//! bytes  0        2d              4d           16d            28d                28d + 192      32d
//!        |- means -|- deviations -|- key codes -|- value codes -|- value statistics -|-- zero --|
//!          [d]       [d]            [48][d/4]     [48][d/4]       [48][mean, deviation]
//! ```
//! Means and deviations are bf16. Byte `j` of a token's codes holds channels `j, j + d/4, j + d/2, j + 3d/4` in bits
//! 0-1, 2-3, 4-5, 6-7.

use kv::geometry::SKETCH_TOKENS;

/// Pages of one group.
pub const GROUP_PAGES: usize = SKETCH_TOKENS / kv::PAGE_TOKENS;

/// A code counts the thresholds `-THRESHOLD, 0, THRESHOLD` deviations from the mean that an element is above;
/// it stands for `mean + THRESHOLD * (code - 1.5) * deviation`.
pub const THRESHOLD: f32 = 0.996;

/// Deviations are at least this.
pub const DEVIATION_LEAST: f32 = 1e-6;

/// Where the parts of a frame begin, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SketchFrame {
    /// Elements of a key or value.
    pub head_dim: usize,
}

impl SketchFrame {
    /// Smallest head whose frame has room for the value statistics: `28 d + 192 <= 32 d`.
    pub const HEAD_DIM_LEAST: usize = 48;

    /// Bytes of one token's codes.
    pub fn row_bytes(self) -> usize {
        self.head_dim / 4
    }

    /// Key deviations; key means are at 0.
    pub fn deviations(self) -> usize {
        2 * self.head_dim
    }

    /// Key codes.
    pub fn key_codes(self) -> usize {
        4 * self.head_dim
    }

    /// Value codes.
    pub fn value_codes(self) -> usize {
        16 * self.head_dim
    }

    /// Value means and deviations.
    pub fn value_statistics(self) -> usize {
        28 * self.head_dim
    }

    /// The frame.
    pub fn bytes(self) -> usize {
        32 * self.head_dim
    }
}

/// The code of an element `centred` = element - mean, for a deviation rounded to bf16.
#[inline(always)]
pub fn code(centred: f32, deviation: f32) -> u8 {
    let threshold = THRESHOLD * deviation;
    u8::from(centred > -threshold) + u8::from(centred > 0.0) + u8::from(centred > threshold)
}
