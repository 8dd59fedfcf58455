//! Cosines and sines of rotary angles, from two small tables.
//!
//! `position = 256 high + low`, so `angle = high angle + low angle`: four multiplications in f64 give what the library
//! functions give, but for the last bits of an f64, and cost a hundredth.

use crate::{MemoryUse, Rope, RuntimeShape};

const LOW: usize = 256;

/// The tables of one runtime.
pub struct RopeTable {
    /// `[256][half]`: cosine and sine of `low * inv_freq`.
    low: Vec<(f64, f64)>,
    /// `[positions / 256][half]`: the same of `256 high * inv_freq`, times the attention factor.
    high: Vec<(f64, f64)>,
    half: usize,
}

impl RopeTable {
    /// Tables for positions below `positions`.
    pub fn new(rope: &Rope, positions: usize) -> Self {
        let factor = f64::from(rope.attention_factor);
        let of = |position: usize, factor: f64| {
            rope.inv_freq.iter().map(move |f| {
                let angle = position as f64 * f;
                (angle.cos() * factor, angle.sin() * factor)
            })
        };
        RopeTable {
            low: (0..LOW).flat_map(|p| of(p, 1.0)).collect(),
            high: (0..positions.div_ceil(LOW)).flat_map(|p| of(p * LOW, factor)).collect(),
            half: rope.inv_freq.len(),
        }
    }

    /// Its line in the memory plan.
    pub fn plan(shape: &RuntimeShape) -> MemoryUse {
        let rows = LOW + (shape.max_tokens + 1).div_ceil(LOW);
        MemoryUse { name: "rope table", bytes: (rows * shape.rope.inv_freq.len() * 16) as u64 }
    }

    /// Writes cosines `[half]`, then sines `[half]`, both times the attention factor.
    pub fn fill(&self, position: usize, out: &mut [f32]) {
        let (cos, sin) = out.split_at_mut(self.half);
        let low = &self.low[position % LOW * self.half..][..self.half];
        let high = &self.high[position / LOW * self.half..][..self.half];
        for (i, ((c1, s1), (c2, s2))) in low.iter().zip(high).enumerate() {
            cos[i] = (c1 * c2 - s1 * s2) as f32;
            sin[i] = (s1 * c2 + c1 * s2) as f32;
        }
    }
}
