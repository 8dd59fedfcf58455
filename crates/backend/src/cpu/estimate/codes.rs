//! Estimate from value codes, with the token logits l that `score_codes` left.
//!
//! With p = e^(l - m), m the split's largest logit, and per token the value's mean and deviation:
//! ```text
//! y[c] = (sum p mean + sum a (code[c] - 1.5)) / sum p,  a = 0.996 p dev     rotated basis;   lse = m + ln sum p
//! ```
//! Per group of 48 tokens, a is rounded to 16 bits: A = the group's largest a, a16 = round(a * (65535 / A)), ties to
//! even, and `sum a (code - 1.5)` becomes `(A / 65535) (sum a16 code - 1.5 sum a16)`, integers exact in any order.
//! Error: at most 48 * 1.5 / 2 / 65535 * A = 5.5e-4 A a channel and group, where the codes themselves are off by 0.34 a
//! (root mean square) for the largest token alone.
//!
//! Skipped: a group of 48 tokens all of whose logits are more than 17.3 = 25 ln 2 below m. At most 8,192 tokens of
//! 2^-25 of the largest token's weight each: the output moves by less than 2^-12 of the values' spread, and lse by
//! less than 2^-12.
//!
//! Groups add up in ascending order; `sum p` and `sum p mean` take token `j` of each page in lane `j` of eight, pages
//! ascending, and add the lanes as [`Simd::sum`] does.

use super::super::score_codes::{bytes, pad_rows};
use super::super::simd::{Kernel, Simd};
use super::super::workspace::padded_row_bytes;
use super::Part;
use crate::sketch::{GROUP_PAGES, SketchFrame, THRESHOLD};
use kv::PAGE_TOKENS;
use kv::geometry::SKETCH_TOKENS;
use std::cell::RefCell;

/// Logits this far below the largest weigh less than 2^-25 of it.
const NEGLIGIBLE: f32 = 17.328_68;

/// Groups whose weights are made before their codes are added, so that the weights' chains of dependent operations
/// overlap; frames are asked for one block ahead: they lie a row apart, where no hardware prefetcher looks.
const BLOCK_GROUPS: usize = 8;

/// Adding and taking away 1.5 * 2^23 rounds to the nearest integer.
const ROUND: f32 = 12_582_912.0;

/// Pairs of tokens in a page and in a group.
const PAGE_PAIRS: usize = PAGE_TOKENS / 2;
const GROUP_PAIRS: usize = SKETCH_TOKENS / 2;

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch::new()) };
}

/// Room for one part.
struct Scratch {
    /// Per group, bit `j` for its page `j`: whether the page is an unselected candidate of this split.
    included: Vec<u8>,
    /// `[heads][groups]`: largest included logit.
    most: Vec<f32>,
    /// `[heads][4][padded row]`: sums over codes.
    sums: Vec<f32>,
    /// `[heads]`: sum of p; sum of p mean; each in eight lanes.
    totals: Vec<[[f32; 8]; 2]>,
    /// `[groups of a block][heads]`
    weights: Vec<Weights>,
    /// `[48][padded row]`: a group's rows, where they need padding.
    rows: Vec<u8>,
    /// `[pairs][units][4][32]`: a group's codes, two tokens alternating, field by field.
    fields: Vec<u8>,
}

impl Scratch {
    const fn new() -> Self {
        Scratch {
            included: Vec::new(),
            most: Vec::new(),
            sums: Vec::new(),
            totals: Vec::new(),
            weights: Vec::new(),
            rows: Vec::new(),
            fields: Vec::new(),
        }
    }
}

/// Writes the partial of every query head of the part.
pub(super) fn estimate(part: &Part<'_>) {
    let (rt, layout) = (part.rt, SketchFrame { head_dim: part.rt.shape.geometry.head_dim });
    SCRATCH.with_borrow_mut(|scratch| {
        let first = part.pages.start / GROUP_PAGES;
        let groups = part.pages.end.div_ceil(GROUP_PAGES) - first;
        scratch.included.clear();
        scratch.included.resize(groups, 0);
        for page in part.pages.clone().filter(|page| !part.is_selected(*page)) {
            scratch.included[page / GROUP_PAGES - first] |= 1 << (page % GROUP_PAGES);
        }
        let heads = part.rows().len();
        let width = padded_row_bytes(layout.head_dim);
        scratch.most.clear();
        scratch.sums.clear();
        scratch.sums.resize(heads * 4 * width, 0.0);
        scratch.totals.clear();
        scratch.totals.resize(heads, [[0.0; 8]; 2]);
        let logits = |row: usize| &rt.work.token_logits.all()[row * rt.work.max_tokens + first * SKETCH_TOKENS..];
        for row in part.rows() {
            rt.isa.run(LargestLogits { logits: logits(row), included: &scratch.included, most: &mut scratch.most });
        }
        let largest =
            |h: usize, most: &[f32]| most[h * groups..(h + 1) * groups].iter().copied().fold(f32::MIN, f32::max);
        let largest: Vec<f32> = (0..heads).map(|h| largest(h, &scratch.most)).collect();
        let frame = |g: usize| rt.frame(part.lane.summary_rows[first + g.min(groups - 1)], part.layer, part.head);
        scratch.weights.resize(heads * BLOCK_GROUPS, Weights::NONE);
        for block in (0..groups).step_by(BLOCK_GROUPS) {
            let block = block..groups.min(block + BLOCK_GROUPS);
            for (g, weights) in block.clone().zip(scratch.weights.chunks_exact_mut(heads)) {
                for (h, weights) in weights.iter_mut().enumerate() {
                    weights.unit = 0.0;
                    if scratch.included[g] != 0 && scratch.most[h * groups + g] >= largest[h] - NEGLIGIBLE {
                        rt.isa.run(Weigh {
                            statistics: &frame(g)[layout.value_statistics() / 2..][..2 * SKETCH_TOKENS],
                            included: scratch.included[g],
                            logits: &logits(part.rows().start + h)[g * SKETCH_TOKENS..(g + 1) * SKETCH_TOKENS],
                            largest: largest[h],
                            totals: &mut scratch.totals[h],
                            weights,
                        });
                    }
                }
            }
            for (g, weights) in block.zip(scratch.weights.chunks_exact(heads)) {
                if weights.iter().all(|weights| weights.unit == 0.0) {
                    continue;
                }
                let (frame, ahead) = (frame(g), bytes(frame(g + BLOCK_GROUPS)));
                rt.isa.run(Interleave { frame, layout, ahead, rows: &mut scratch.rows, fields: &mut scratch.fields });
                for (weights, sums) in weights.iter().zip(scratch.sums.chunks_exact_mut(4 * width)) {
                    if weights.unit != 0.0 {
                        rt.isa.run(AddGroup { fields: &scratch.fields, weights, sums });
                    }
                }
            }
        }
        for (h, row) in part.rows().enumerate() {
            let sums = &scratch.sums[h * 4 * width..(h + 1) * 4 * width];
            let partial = part.partial(row);
            rt.isa.run(Finish { sums, totals: &scratch.totals[h], largest: largest[h], partial });
        }
    });
}

/// Pages of `0..6` whose bit is set.
#[inline(always)]
fn pages_of(included: u8) -> impl Iterator<Item = usize> {
    (0..GROUP_PAGES).filter(move |page| included >> page & 1 == 1)
}

/// Appends the largest included logit of every group (f32::MIN for none).
struct LargestLogits<'a> {
    logits: &'a [f32],
    included: &'a [u8],
    most: &'a mut Vec<f32>,
}

impl Kernel for LargestLogits<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        for (logits, included) in self.logits.chunks_exact(SKETCH_TOKENS).zip(self.included) {
            let mut most = S::splat(f32::MIN);
            for page in pages_of(*included) {
                // SAFETY: eight logits a page.
                most = unsafe { S::max(S::load(logits.as_ptr().add(page * PAGE_TOKENS)), most) };
            }
            self.most.push(S::largest(most));
        }
    }
}

/// Fills `fields` with a group's value codes.
struct Interleave<'a> {
    frame: &'a [u16],
    layout: SketchFrame,
    /// A later group's frame.
    ahead: &'a [u8],
    rows: &'a mut Vec<u8>,
    fields: &'a mut Vec<u8>,
}

impl Kernel for Interleave<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let width = padded_row_bytes(self.layout.head_dim);
        let codes = &bytes(self.frame)[self.layout.value_codes()..self.layout.value_statistics()];
        let rows = if width == self.layout.row_bytes() {
            codes
        } else {
            pad_rows(codes, width, self.rows);
            &self.rows[..]
        };
        assert_eq!(rows.len(), SKETCH_TOKENS * width);
        self.fields.resize(GROUP_PAIRS * 2 * width * 4, 0);
        for line in self.ahead[self.layout.value_codes()..self.layout.value_statistics() + 4 * SKETCH_TOKENS].chunks(64)
        {
            S::prefetch(line.as_ptr());
        }
        // SAFETY: rows are `[48][width]`, fields `[24][width / 16][4][32]`.
        unsafe {
            let (rows, mut out) = (rows.as_ptr(), self.fields.as_mut_ptr());
            for pair in 0..GROUP_PAIRS {
                let (a, b) = (rows.add(2 * pair * width), rows.add((2 * pair + 1) * width));
                if width == 16 {
                    store_fields::<S>(S::interleave_halves(S::load_bytes(a)), &mut out);
                    continue;
                }
                for n in (0..width).step_by(32) {
                    let units = S::interleave(S::load_bytes(a.add(n)), S::load_bytes(b.add(n)));
                    store_fields::<S>(units[0], &mut out);
                    store_fields::<S>(units[1], &mut out);
                }
            }
        }
    }
}

/// Writes the four fields of 32 bytes and moves on.
///
/// # Safety
/// 128 bytes at `out` are writable.
#[inline(always)]
unsafe fn store_fields<S: Simd>(bytes: S::I, out: &mut *mut u8) {
    let fields = S::fields(bytes);
    for k in 0..4 {
        // SAFETY: by the caller's promise.
        unsafe { S::store_bytes(out.add(32 * k), fields[k]) };
    }
    // SAFETY: at most one past the end.
    *out = unsafe { out.add(128) };
}

/// A group's 16-bit weights for one query head: their high and low bytes pair by pair, what one stands for (0 where
/// all are zero), 1.5 times their sum.
#[derive(Clone)]
struct Weights {
    high: [u64; GROUP_PAIRS],
    low: [u64; GROUP_PAIRS],
    unit: f32,
    shift: f32,
}

impl Weights {
    const NONE: Weights = Weights { high: [0; GROUP_PAIRS], low: [0; GROUP_PAIRS], unit: 0.0, shift: 0.0 };
}

/// Adds one group to one query head's sums.
struct AddGroup<'a> {
    fields: &'a [u8],
    weights: &'a Weights,
    sums: &'a mut [f32],
}

impl Kernel for AddGroup<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let weights = self.weights;
        let (width, units) = (self.sums.len() / 4, self.sums.len() / 64);
        assert_eq!(self.fields.len(), GROUP_PAIRS * units * 128);
        let (unit, shift) = (S::splat(weights.unit), S::splat(weights.shift));
        for u in 0..units {
            let (mut high, mut low) = ([S::splat_byte(0); 4], [S::splat_byte(0); 4]);
            // Excluded pages have zero weights.
            for pair in 0..GROUP_PAIRS {
                // SAFETY: fields are `[24][units][4][32]`, weights `[24]`.
                unsafe {
                    let h = S::load_four_bytes(weights.high.as_ptr().add(pair).cast());
                    let l = S::load_four_bytes(weights.low.as_ptr().add(pair).cast());
                    let fields = self.fields.as_ptr().add((pair * units + u) * 128);
                    for k in 0..4 {
                        let codes = S::load_bytes(fields.add(32 * k));
                        high[k] = S::add_i16(high[k], S::dot_pairs(h, codes));
                        low[k] = S::add_i16(low[k], S::dot_pairs(l, codes));
                    }
                }
            }
            // A unit holds bytes 8 u.. and 8 u + 16.. of 32-byte rows, or all sixteen of a 16-byte row.
            let first = u / 2 * 32 + u % 2 * 8;
            let last = first + if units == 1 { 8 } else { 16 };
            for k in 0..4 {
                let joined = S::join_u16(high[k], low[k]);
                for (part, byte) in [first, last].into_iter().enumerate() {
                    // SAFETY: sums are `[4][width]`.
                    unsafe {
                        let sum = self.sums.as_mut_ptr().add(k * width + byte);
                        S::store(sum, S::fma(S::sub(joined[part], shift), unit, S::load(sum)));
                    }
                }
            }
        }
    }
}

/// Makes one head's weights of one group, and adds the group to the head's totals.
struct Weigh<'a> {
    /// `[48]` means and deviations.
    statistics: &'a [u16],
    included: u8,
    logits: &'a [f32],
    largest: f32,
    totals: &'a mut [[f32; 8]; 2],
    /// Written; `unit` is zero before.
    weights: &'a mut Weights,
}

impl Kernel for Weigh<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        assert!(self.logits.len() == SKETCH_TOKENS && self.statistics.len() == 2 * SKETCH_TOKENS);
        let zero = S::splat(0.0);
        let (mut a, mut most) = ([zero; GROUP_PAGES], zero);
        // SAFETY: eight logits and pairs of statistics a page, two totals of eight, four pairs of weights a page.
        unsafe {
            let (mut total, mut mean_total) = (S::load(self.totals[0].as_ptr()), S::load(self.totals[1].as_ptr()));
            for page in pages_of(self.included) {
                let at = page * PAGE_TOKENS;
                let (mean, deviation) = S::load_bf16_even_odd(self.statistics.as_ptr().add(2 * at));
                let p = S::exp(S::sub(S::load(self.logits.as_ptr().add(at)), S::splat(self.largest)));
                total = S::add(total, p);
                mean_total = S::fma(p, mean, mean_total);
                a[page] = S::mul(p, S::mul(deviation, S::splat(THRESHOLD)));
                most = S::max(a[page], most);
            }
            S::store(self.totals[0].as_mut_ptr(), total);
            S::store(self.totals[1].as_mut_ptr(), mean_total);
            let most = S::largest(most);
            if most < 1e-30 {
                return;
            }
            let (inverse, round, mut sum) = (S::splat(65535.0 / most), S::splat(ROUND), zero);
            let (high, low) = (self.weights.high.as_mut_ptr(), self.weights.low.as_mut_ptr());
            for page in 0..GROUP_PAGES {
                let weight = S::sub(S::add(S::mul(a[page], inverse), round), round);
                sum = S::add(sum, weight);
                S::store_byte_pairs(high.add(page * PAGE_PAIRS), low.add(page * PAGE_PAIRS), weight);
            }
            self.weights.unit = most / 65535.0;
            self.weights.shift = 1.5 * S::sum(sum);
        }
    }
}

/// Writes a head's partial.
struct Finish<'a> {
    sums: &'a [f32],
    totals: &'a [[f32; 8]; 2],
    largest: f32,
    partial: &'a mut [f32],
}

impl Kernel for Finish<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let d = self.partial.len() - 2;
        if self.largest == f32::MIN {
            self.partial.fill(0.0);
            self.partial[d] = f32::NEG_INFINITY;
            return;
        }
        // SAFETY: eight lanes each.
        let [total, mean] =
            unsafe { [S::sum(S::load(self.totals[0].as_ptr())), S::sum(S::load(self.totals[1].as_ptr()))] };
        let quarters = self.partial[..d].chunks_exact_mut(d / 4).zip(self.sums.chunks_exact(self.sums.len() / 4));
        for (out, sums) in quarters {
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = (sum + mean) / total;
            }
        }
        self.partial[d] = self.largest + total.ln();
    }
}
