//! Block formats of GGUF and their values in f32.
//!
//! The order of operations is that of the reference Python reader (`gguf.quants`): results are the same to the last
//! bit. Nibbles lie "low halves first": in a block of 32, byte `i` holds value `i` in its low and value `i + 16` in its
//! high half.

use half::f16;

/// How a tensor's values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(non_camel_case_types, reason = "the names that the format and its users have for them")]
pub(crate) enum Quant {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q4_K,
    Q5_K,
    Q6_K,
}

/// Ids and names of the formats that are known but not read.
const OTHERS: [(u32, &str); 22] = [
    (9, "Q8_1"),
    (10, "Q2_K"),
    (11, "Q3_K"),
    (15, "Q8_K"),
    (16, "IQ2_XXS"),
    (17, "IQ2_XS"),
    (18, "IQ3_XXS"),
    (19, "IQ1_S"),
    (20, "IQ4_NL"),
    (21, "IQ3_S"),
    (22, "IQ2_S"),
    (23, "IQ4_XS"),
    (24, "I8"),
    (25, "I16"),
    (26, "I32"),
    (27, "I64"),
    (28, "F64"),
    (29, "IQ1_M"),
    (34, "TQ1_0"),
    (35, "TQ2_0"),
    (39, "MXFP4"),
    (40, "NVFP4"),
];

impl Quant {
    pub(super) const SUPPORTED: &str = "F32, F16, BF16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, Q4_K, Q5_K, Q6_K";

    /// The format with GGML's type id, or what to call one that is not read.
    pub(super) fn from_id(id: u32) -> Result<Self, String> {
        Ok(match id {
            0 => Self::F32,
            1 => Self::F16,
            2 => Self::Q4_0,
            3 => Self::Q4_1,
            6 => Self::Q5_0,
            7 => Self::Q5_1,
            8 => Self::Q8_0,
            12 => Self::Q4_K,
            13 => Self::Q5_K,
            14 => Self::Q6_K,
            30 => Self::BF16,
            _ => {
                let known = OTHERS.iter().find(|(other, _)| *other == id);
                return Err(known.map_or(format!("type {id}"), |(_, name)| (*name).to_owned()));
            }
        })
    }

    pub(super) fn block_values(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 => 32,
            Self::Q4_K | Self::Q5_K | Self::Q6_K => 256,
        }
    }

    pub(super) fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => 2 + 16,
            Self::Q4_1 => 4 + 16,
            Self::Q5_0 => 2 + 4 + 16,
            Self::Q5_1 => 4 + 4 + 16,
            Self::Q8_0 => 2 + 32,
            Self::Q4_K => 4 + 12 + 128,
            Self::Q5_K => 4 + 12 + 32 + 128,
            Self::Q6_K => 128 + 64 + 16 + 2,
        }
    }

    /// The values of whole blocks. A format without blocks takes `f32_from_bytes` and its like instead.
    pub(super) fn dequantise(self, bytes: &[u8]) -> Vec<f32> {
        let block = match self {
            Self::Q4_0 => q4_0,
            Self::Q4_1 => q4_1,
            Self::Q5_0 => q5_0,
            Self::Q5_1 => q5_1,
            Self::Q8_0 => q8_0,
            Self::Q4_K => q4_k,
            Self::Q5_K => q5_k,
            Self::Q6_K => q6_k,
            Self::F32 | Self::F16 | Self::BF16 => unreachable!("{self:?} has no blocks"),
        };
        let mut values = vec![0.0; bytes.len() / self.block_bytes() * self.block_values()];
        let blocks = bytes.chunks_exact(self.block_bytes()).zip(values.chunks_exact_mut(self.block_values()));
        for (bytes, values) in blocks {
            block(bytes, values);
        }
        values
    }
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// d: f16 | 16 bytes of nibbles
fn q4_0(bytes: &[u8], values: &mut [f32]) {
    let scale = half_at(bytes, 0);
    for (i, byte) in bytes[2..].iter().enumerate() {
        values[i] = scale * (f32::from(byte & 15) - 8.0);
        values[i + 16] = scale * (f32::from(byte >> 4) - 8.0);
    }
}

/// d: f16 | m: f16 | 16 bytes of nibbles
fn q4_1(bytes: &[u8], values: &mut [f32]) {
    let (scale, minimum) = (half_at(bytes, 0), half_at(bytes, 2));
    for (i, byte) in bytes[4..].iter().enumerate() {
        values[i] = scale * f32::from(byte & 15) + minimum;
        values[i + 16] = scale * f32::from(byte >> 4) + minimum;
    }
}

/// Value `i` of a block of 32 with four low bits in `nibbles` and the fifth in bit `i` of `high`.
fn five_bits(nibbles: &[u8], high: u32, i: usize) -> f32 {
    let low = if i < 16 { nibbles[i] & 15 } else { nibbles[i - 16] >> 4 };
    f32::from(low | (((high >> i) & 1) as u8) << 4)
}

/// d: f16 | fifth bits: u32 | 16 bytes of nibbles
fn q5_0(bytes: &[u8], values: &mut [f32]) {
    let (scale, high) = (half_at(bytes, 0), u32_at(bytes, 2));
    for (i, value) in values.iter_mut().enumerate() {
        *value = scale * (five_bits(&bytes[6..], high, i) - 16.0);
    }
}

/// d: f16 | m: f16 | fifth bits: u32 | 16 bytes of nibbles
fn q5_1(bytes: &[u8], values: &mut [f32]) {
    let (scale, minimum, high) = (half_at(bytes, 0), half_at(bytes, 2), u32_at(bytes, 4));
    for (i, value) in values.iter_mut().enumerate() {
        *value = scale * five_bits(&bytes[8..], high, i) + minimum;
    }
}

/// d: f16 | 32 × i8
fn q8_0(bytes: &[u8], values: &mut [f32]) {
    let scale = half_at(bytes, 0);
    for (value, byte) in values.iter_mut().zip(&bytes[2..]) {
        *value = f32::from(*byte as i8) * scale;
    }
}

/// Scale and minimum of the eight groups of 32 of a K block: 6 bits each, packed into 12 bytes.
fn scale_and_minimum(packed: &[u8], group: usize) -> (f32, f32) {
    let (scale, minimum) = if group < 4 {
        (packed[group] & 63, packed[group + 4] & 63)
    } else {
        let low = packed[group + 4];
        ((low & 15) | (packed[group - 4] >> 6) << 4, (low >> 4) | (packed[group] >> 6) << 4)
    };
    (f32::from(scale), f32::from(minimum))
}

/// d: f16 | dmin: f16 | 12 bytes of scales and minima | 128 bytes of nibbles, 32 bytes for two groups
fn q4_k(bytes: &[u8], values: &mut [f32]) {
    let (d, dmin) = (half_at(bytes, 0), half_at(bytes, 2));
    for (group, values) in values.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = scale_and_minimum(&bytes[4..16], group);
        let (scale, minimum) = (d * scale, dmin * minimum);
        let nibbles = &bytes[16 + group / 2 * 32..];
        for (value, byte) in values.iter_mut().zip(nibbles) {
            *value = scale * f32::from((byte >> (group % 2 * 4)) & 15) - minimum;
        }
    }
}

/// As `q4_k`, with 32 bytes of fifth bits before the nibbles: bit `group` of byte `i`
fn q5_k(bytes: &[u8], values: &mut [f32]) {
    let (d, dmin) = (half_at(bytes, 0), half_at(bytes, 2));
    for (group, values) in values.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = scale_and_minimum(&bytes[4..16], group);
        let (scale, minimum) = (d * scale, dmin * minimum);
        let nibbles = &bytes[48 + group / 2 * 32..];
        for (i, value) in values.iter_mut().enumerate() {
            let low = (nibbles[i] >> (group % 2 * 4)) & 15;
            let high = (bytes[16 + i] >> group) & 1;
            *value = scale * f32::from(low | high << 4) - minimum;
        }
    }
}

/// 128 bytes of nibbles | 64 bytes of high pairs | 16 × i8 scales, one for 16 values | d: f16
fn q6_k(bytes: &[u8], values: &mut [f32]) {
    let (nibbles, rest) = bytes.split_at(128);
    let (pairs, scales) = rest.split_at(64);
    let d = half_at(bytes, 208);
    for (i, value) in values.iter_mut().enumerate() {
        // value i: half of 128, quarter of 32 inside it
        let (half, quarter, lane) = (i / 128, i / 32 % 4, i % 32);
        let low = (nibbles[half * 64 + quarter % 2 * 32 + lane] >> (quarter / 2 * 4)) & 15;
        let high = (pairs[half * 32 + lane] >> (quarter * 2)) & 3;
        let scale = d * f32::from(scales[i / 16] as i8);
        *value = scale * (f32::from(low | high << 4) - 32.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::{bf16_from_bytes, f32_from_f16_bytes};

    /// `golden/quants/TYPE.bin`: blocks, then the f32 values that the reference package makes of them.
    #[test]
    fn values_are_those_of_the_reference_to_the_bit() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../testing/golden/quants");
        for id in [1, 2, 3, 6, 7, 8, 12, 13, 14, 30] {
            let quant = Quant::from_id(id).unwrap();
            let golden = std::fs::read(folder.join(format!("{quant:?}.bin").to_lowercase())).unwrap();
            let block = quant.block_bytes() + 4 * quant.block_values();
            let blocks = golden.len() / block;
            assert_eq!((golden.len() % block, 2048 / quant.block_values()), (0, blocks));
            let (stored, expected) = golden.split_at(blocks * quant.block_bytes());
            let values = match quant {
                Quant::F16 => f32_from_f16_bytes(stored),
                Quant::BF16 => bf16_from_bytes(stored).iter().map(|value| value.to_f32()).collect(),
                blocks => blocks.dequantise(stored),
            };
            for (i, (value, expected)) in values.iter().zip(expected.as_chunks::<4>().0).enumerate() {
                let expected = f32::from_le_bytes(*expected);
                assert_eq!(value.to_bits(), expected.to_bits(), "{quant:?} value {i}: {value} is not {expected}");
            }
        }
    }
}
