//! Index of the sketch: 2-bit codes and statistics of 48-token groups (`crate::sketch`), from bf16 K and V in rows.
//!
//! Rotated elements are one chain of multiply-adds each, inputs ascending. A key channel's sum over the group takes
//! tokens `j, j + 8, ...` in lane `j` of eight and adds the lanes as [`super::simd::Lanes::sum`] does; a value token's
//! sum over channels is one chain, ascending. A group's bytes are a function of its tokens alone.

use super::runtime::{CpuRuntime, vector};
use super::simd::{Kernel, Simd};
use super::units::{by_summary_row, with_spans};
use crate::sketch::{self, DEVIATION_LEAST, GROUP_PAGES, SketchFrame};
use crate::{AlgorithmId, IndexUnits, Rotations};
use half::bf16;
use kv::PAGE_TOKENS;
use kv::geometry::SKETCH_TOKENS;
use std::cell::RefCell;

/// Vectors of eight tokens in a group.
const EIGHTS: usize = SKETCH_TOKENS / 8;

thread_local! {
    /// `[d][48]` inputs, then `[d][48]` rotated, then `[d][48]` codes in bytes.
    static SCRATCH: RefCell<(Vec<f32>, Vec<f32>, Vec<u8>)> =
        const { RefCell::new((Vec::new(), Vec::new(), Vec::new())) };
}

/// See [`crate::Runtime`].
pub(super) fn rotate_code(
    rt: &CpuRuntime,
    algorithm: AlgorithmId,
    layer: usize,
    units: IndexUnits<'_>,
    rotations: Rotations<'_>,
) {
    let (heads, d) = (rt.shape.geometry.kv_heads, rt.shape.geometry.head_dim);
    let (key_rotation, value_rotation) = (vector(rotations.key), vector(rotations.value));
    assert!(d >= SketchFrame::HEAD_DIM_LEAST, "the sketch is refused for head_dim {d} when its rotations are prepared");
    assert!(key_rotation.len() == heads * d * d && value_rotation.len() == heads * d * d, "rotations of another shape");
    with_spans(rt, algorithm, units, |spans| {
        for span in spans {
            let whole = span.pages.start % GROUP_PAGES == 0 && span.pages.end % GROUP_PAGES == 0;
            assert!(whole, "pages {:?} are whole groups", span.pages);
        }
        let groups = by_summary_row(spans, GROUP_PAGES);
        rt.threads.each(groups.len() * heads, groups.len() * heads * 2 * SKETCH_TOKENS * d * d, |task| {
            let ((span, row, pages), head) = (&groups[task % groups.len()], task / groups.len());
            let span = &spans[*span];
            let pages: [&[u16]; GROUP_PAGES] =
                std::array::from_fn(|p| rt.frame(span.kv_rows[pages.start + p], layer, head));
            // SAFETY: `groups` names every summary row once (of a lane's own rows), so this task alone has the frame.
            let frame = unsafe { rt.frame_mut(span.summary_rows[*row], layer, head) };
            let rotation = head * d * d..(head + 1) * d * d;
            SCRATCH.with_borrow_mut(|(x, rotated, codes)| {
                x.resize(d * SKETCH_TOKENS, 0.0);
                rotated.resize(d * SKETCH_TOKENS, 0.0);
                codes.resize(d * SKETCH_TOKENS, 0);
                frame.fill(0);
                rt.isa.run(Gather { pages, first: 0, x });
                rt.isa.run(Rotate { rotation: &key_rotation[rotation.clone()], x, rotated });
                rt.isa.run(CodeKeys { rotated, codes, frame });
                rt.isa.run(Gather { pages, first: PAGE_TOKENS * d, x });
                rt.isa.run(Rotate { rotation: &value_rotation[rotation], x, rotated });
                rt.isa.run(CodeValues { rotated, codes, frame });
            });
        });
    });
}

/// `x[c][token]` of the group's keys (`first` = 0) or values (`first` = 8 d).
struct Gather<'a> {
    pages: [&'a [u16]; GROUP_PAGES],
    first: usize,
    x: &'a mut [f32],
}

impl Kernel for Gather<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let d = self.x.len() / SKETCH_TOKENS;
        for (c, x) in self.x.chunks_exact_mut(SKETCH_TOKENS).enumerate() {
            for (page, x) in self.pages.iter().zip(x.chunks_exact_mut(PAGE_TOKENS)) {
                let column = &page[self.first + c..][..(PAGE_TOKENS - 1) * d + 1];
                for t in 0..PAGE_TOKENS {
                    x[t] = bf16::from_bits(column[t * d]).to_f32();
                }
            }
        }
    }
}

/// `rotated[c][token] = sum over i of rotation[c][i] * x[i][token]`, i ascending, one chain each.
struct Rotate<'a> {
    rotation: &'a [f32],
    x: &'a [f32],
    rotated: &'a mut [f32],
}

impl Kernel for Rotate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let d = self.x.len() / SKETCH_TOKENS;
        assert!(self.rotation.len() == d * d && self.rotated.len() == self.x.len() && d.is_multiple_of(2));
        for c in (0..d).step_by(2) {
            let mut acc = [[S::splat(0.0); EIGHTS]; 2];
            for i in 0..d {
                // SAFETY: `[d][d]` rotations and `[d][48]` elements, by the assertion.
                unsafe {
                    let x = self.x.as_ptr().add(i * SKETCH_TOKENS);
                    let r0 = S::splat(*self.rotation.get_unchecked(c * d + i));
                    let r1 = S::splat(*self.rotation.get_unchecked((c + 1) * d + i));
                    for e in 0..EIGHTS {
                        let x = S::load(x.add(8 * e));
                        acc[0][e] = S::fma(r0, x, acc[0][e]);
                        acc[1][e] = S::fma(r1, x, acc[1][e]);
                    }
                }
            }
            for (k, acc) in acc.iter().enumerate() {
                for (e, acc) in acc.iter().enumerate() {
                    // SAFETY: as above.
                    unsafe { S::store(self.rotated.as_mut_ptr().add((c + k) * SKETCH_TOKENS + 8 * e), *acc) };
                }
            }
        }
    }
}

/// Mean and deviation rounded to bf16, as bits and in f32.
struct Statistics {
    bits: [u16; 2],
    mean: f32,
    deviation: f32,
}

impl Statistics {
    #[inline(always)]
    fn new(mean: f32, variance: f32) -> Self {
        let (mean, deviation) = (bf16::from_f32(mean), bf16::from_f32(variance.sqrt().max(DEVIATION_LEAST)));
        Statistics { bits: [mean.to_bits(), deviation.to_bits()], mean: mean.to_f32(), deviation: deviation.to_f32() }
    }
}

/// Keys: statistics per channel over the group.
struct CodeKeys<'a> {
    rotated: &'a [f32],
    codes: &'a mut [u8],
    frame: &'a mut [u16],
}

impl Kernel for CodeKeys<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let layout = SketchFrame { head_dim: self.frame.len() / 16 };
        let rows = self.rotated.chunks_exact(SKETCH_TOKENS).zip(self.codes.chunks_exact_mut(SKETCH_TOKENS));
        for (c, (x, codes)) in rows.enumerate() {
            // SAFETY: `x` has 48 elements.
            let (mean, variance) = unsafe {
                let mut sum = S::load(x.as_ptr());
                for e in 1..EIGHTS {
                    sum = S::add(sum, S::load(x.as_ptr().add(8 * e)));
                }
                let mean = S::sum(sum) / SKETCH_TOKENS as f32;
                let mut squares = S::splat(0.0);
                for e in 0..EIGHTS {
                    let centred = S::sub(S::load(x.as_ptr().add(8 * e)), S::splat(mean));
                    squares = S::fma(centred, centred, squares);
                }
                (mean, S::sum(squares) / SKETCH_TOKENS as f32)
            };
            let statistics = Statistics::new(mean, variance);
            self.frame[c] = statistics.bits[0];
            self.frame[layout.deviations() / 2 + c] = statistics.bits[1];
            for (x, code) in x.iter().zip(codes) {
                *code = sketch::code(x - statistics.mean, statistics.deviation);
            }
        }
        write_codes(self.codes, layout.key_codes(), self.frame);
    }
}

/// Values: statistics per token over the channels.
struct CodeValues<'a> {
    rotated: &'a [f32],
    codes: &'a mut [u8],
    frame: &'a mut [u16],
}

impl Kernel for CodeValues<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let d = self.frame.len() / 16;
        let layout = SketchFrame { head_dim: d };
        let (mut sums, mut squares) = ([0.0; SKETCH_TOKENS], [0.0; SKETCH_TOKENS]);
        for x in self.rotated.chunks_exact(SKETCH_TOKENS) {
            for (sum, x) in sums.iter_mut().zip(x) {
                *sum += x;
            }
        }
        let means = sums.map(|sum| sum / d as f32);
        for x in self.rotated.chunks_exact(SKETCH_TOKENS) {
            for t in 0..SKETCH_TOKENS {
                let centred = x[t] - means[t];
                squares[t] += centred * centred;
            }
        }
        let (mut mean, mut deviation) = ([0.0; SKETCH_TOKENS], [0.0; SKETCH_TOKENS]);
        for t in 0..SKETCH_TOKENS {
            let statistics = Statistics::new(means[t], squares[t] / d as f32);
            (mean[t], deviation[t]) = (statistics.mean, statistics.deviation);
            let at = layout.value_statistics() / 2 + 2 * t;
            self.frame[at..at + 2].copy_from_slice(&statistics.bits);
        }
        let rows = self.rotated.chunks_exact(SKETCH_TOKENS).zip(self.codes.chunks_exact_mut(SKETCH_TOKENS));
        for (x, codes) in rows {
            for t in 0..SKETCH_TOKENS {
                codes[t] = sketch::code(x[t] - mean[t], deviation[t]);
            }
        }
        write_codes(self.codes, layout.value_codes(), self.frame);
    }
}

/// Packs `codes` `[d][48]` to `[48][d / 4]` bytes from byte `at` of the frame on.
#[inline(always)]
fn write_codes(codes: &[u8], at: usize, frame: &mut [u16]) {
    let quarter = frame.len() / 16 / 4;
    let mut bytes = [0_u8; 64 * SKETCH_TOKENS];
    for j in 0..quarter {
        for t in 0..SKETCH_TOKENS {
            let field = |k: usize| codes[(j + k * quarter) * SKETCH_TOKENS + t] << (2 * k);
            bytes[t * quarter + j] = field(0) | field(1) | field(2) | field(3);
        }
    }
    let (pairs, _) = bytes[..quarter * SKETCH_TOKENS].as_chunks::<2>();
    for (element, pair) in frame[at / 2..].iter_mut().zip(pairs) {
        *element = u16::from_le_bytes(*pair);
    }
}
