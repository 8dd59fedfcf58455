//! Estimate from value codes, with the token logits l that `score_codes` left.
//!
//! With p = e^(l - m), m the split's largest logit, and per token the value's mean and deviation:
//! ```text
//! y[c] = (sum p mean + sum a (code[c] - 1.5)) / sum p,  a = 0.996 p dev     rotated basis;   lse = m + ln sum p
//! ```
//! Per group of 48 tokens, a is rounded to 8 bits: A = the group's largest a, a8 = round(a * (255 / A)), ties to even,
//! and `sum a (code - 1.5)` becomes `(A / 255) (sum a8 code - 1.5 sum a8)`, integers exact in any order; means, and so
//! all of `lse`, keep p as it is.
//! Error a channel and group: at most 48 * 1.5 / 2 / 255 * A = 0.14 A. Root mean square: a weight is off by
//! A / 255 / sqrt(12), a level (code - 1.5) is 1.12, together sqrt(48) * 1.12 * 1.1e-3 A = 0.0088 A. The codes
//! themselves are off by 0.34 a for each token (root mean square): where one token has all the weight, rounding adds
//! 2.6 % of that, or 0.03 % of its square; where 48 tokens have the same, 0.4 %.
//!
//! Skipped: a group of 48 tokens all of whose logits are more than 17.3 = 25 ln 2 below m. At most 8,192 tokens of
//! 2^-25 of the largest token's weight each: the output moves by less than 2^-12 of the values' spread, and lse by
//! less than 2^-12.
//!
//! Groups add up in ascending order; `sum p`, `sum p mean` and `sum a8` take token `j` of each page in lane `j` of
//! eight, pages ascending, and add the lanes as [`Simd::sum`] does.

use super::super::score_codes::{bytes, pad_rows};
use super::super::simd::{Kernel, Simd};
use super::super::workspace::padded_row_bytes;
use super::Part;
use crate::sketch::{GROUP_PAGES, SketchFrame, THRESHOLD};
use kv::PAGE_TOKENS;
use kv::geometry::SKETCH_TOKENS;
use std::cell::RefCell;
use std::ops::Range;

/// Logits this far below the largest weigh less than 2^-25 of it.
const NEGLIGIBLE: f32 = 17.328_68;

/// Groups whose weights are made before their codes are added, so that the weights' chains of dependent operations
/// overlap; frames are asked for one block ahead: they lie a row apart, where no hardware prefetcher looks.
const BLOCK_GROUPS: usize = 8;

/// Pairs of tokens in a group.
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
    /// `[heads]`
    totals: Vec<Totals>,
    /// `[heads][groups of a block]`
    weights: Vec<Weights>,
    /// `[48][padded row]`: a group's rows, where they need padding.
    rows: Vec<u8>,
}

/// What one query head adds up beside its sums over codes.
#[derive(Clone)]
struct Totals {
    /// The split's largest logit; f32::MIN for none.
    largest: f32,
    p: [f32; 8],
    p_mean: [f32; 8],
    /// Sum of `(A / 255) a8`.
    weight: [f32; 8],
}

/// A group's weights a8 for one query head, and what one stands for (0 where all are zero).
#[derive(Clone)]
struct Weights {
    bytes: [u8; 64],
    unit: f32,
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
        }
    }

    /// Ready for `groups` groups from `first` on.
    fn start(&mut self, part: &Part<'_>, first: usize, groups: usize, width: usize) {
        let heads = part.rows().len();
        self.included.clear();
        self.included.resize(groups, 0);
        for page in part.pages.clone().filter(|page| !part.is_selected(*page)) {
            self.included[page / GROUP_PAGES - first] |= 1 << (page % GROUP_PAGES);
        }
        self.most.clear();
        self.sums.clear();
        self.sums.resize(heads * 4 * width, 0.0);
        self.totals.clear();
        self.totals.resize(heads, Totals { largest: f32::MIN, p: [0.0; 8], p_mean: [0.0; 8], weight: [0.0; 8] });
        self.weights.resize(heads * BLOCK_GROUPS, Weights { bytes: [0; 64], unit: 0.0 });
    }
}

/// Writes the partial of every query head of the part.
pub(super) fn estimate(part: &Part<'_>) {
    let first = part.pages.start / GROUP_PAGES;
    let groups = part.pages.end.div_ceil(GROUP_PAGES) - first;
    let layout = SketchFrame { head_dim: part.rt.shape.geometry.head_dim };
    let width = padded_row_bytes(layout.head_dim);
    SCRATCH.with_borrow_mut(|scratch| {
        scratch.start(part, first, groups, width);
        part.rt.isa.run(Split { part, layout, width, first, groups, scratch });
        for (h, row) in part.rows().enumerate() {
            let sums = &scratch.sums[h * 4 * width..(h + 1) * 4 * width];
            part.rt.isa.run(Finish { sums, totals: &scratch.totals[h], partial: part.partial(row) });
        }
    });
}

/// Adds up all groups of a split, for every query head.
struct Split<'a> {
    part: &'a Part<'a>,
    layout: SketchFrame,
    /// Bytes of a padded row of codes.
    width: usize,
    first: usize,
    groups: usize,
    scratch: &'a mut Scratch,
}

impl Kernel for Split<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self) {
        for (h, row) in self.part.rows().enumerate() {
            let (logits, scratch) = (self.logits(row), &mut *self.scratch);
            let largest = largest_logits::<S>(logits, &scratch.included, &mut scratch.most);
            scratch.totals[h].largest = largest;
        }
        for block in (0..self.groups).step_by(BLOCK_GROUPS) {
            let block = block..self.groups.min(block + BLOCK_GROUPS);
            for h in 0..self.part.rows().len() {
                self.weigh_block::<S>(block.clone(), h);
            }
            for g in block.clone() {
                self.add_group::<S>(g, g - block.start);
            }
        }
    }
}

impl<'a> Split<'a> {
    fn logits(&self, row: usize) -> &'a [f32] {
        let work = &self.part.rt.work;
        &work.token_logits.all()[row * work.max_tokens + self.first * SKETCH_TOKENS..][..self.groups * SKETCH_TOKENS]
    }

    /// The frame of a group; of the last one for groups behind it.
    #[inline(always)]
    fn frame(&self, g: usize) -> &'a [u16] {
        let row = self.part.lane.summary_rows[self.first + g.min(self.groups - 1)];
        self.part.rt.frame(row, self.part.layer, self.part.head)
    }

    /// Makes the weights of a block's groups for one head, and adds the groups to the head's totals: step by step for
    /// all of them, so that chains of dependent operations overlap.
    #[inline(always)]
    fn weigh_block<S: Simd>(&mut self, block: Range<usize>, h: usize) {
        let logits = self.logits(self.part.rows().start + h);
        let mut most = [S::splat(0.0); BLOCK_GROUPS];
        let mut a = [[[0.0; PAGE_TOKENS]; GROUP_PAGES]; BLOCK_GROUPS];
        for (n, g) in block.enumerate() {
            let frame = self.frame(g);
            let Scratch { included, most: largest_of, totals, .. } = &mut *self.scratch;
            if included[g] != 0 && largest_of[h * self.groups + g] >= totals[h].largest - NEGLIGIBLE {
                let statistics = &frame[self.layout.value_statistics() / 2..][..2 * SKETCH_TOKENS];
                let logits = &logits[g * SKETCH_TOKENS..(g + 1) * SKETCH_TOKENS];
                most[n] = weigh::<S>(statistics, included[g], logits, &mut totals[h], &mut a[n]);
            }
        }
        let mut largest = [0.0; BLOCK_GROUPS];
        // SAFETY: eight lanes.
        unsafe { S::store(largest.as_mut_ptr(), S::maxes(most)) };
        let weights = &mut self.scratch.weights[h * BLOCK_GROUPS..(h + 1) * BLOCK_GROUPS];
        let mut inverse = [0.0; BLOCK_GROUPS];
        for n in 0..BLOCK_GROUPS {
            let some = largest[n] >= 1e-30;
            inverse[n] = if some { 255.0 / largest[n] } else { 0.0 };
            weights[n].unit = if some { largest[n] / 255.0 } else { 0.0 };
        }
        let totals = &mut self.scratch.totals[h];
        for n in 0..BLOCK_GROUPS {
            round_weights::<S>(&a[n], inverse[n], &mut weights[n], &mut totals.weight);
        }
    }

    /// Adds a group, the `n`-th of its block, to all heads' sums.
    #[inline(always)]
    fn add_group<S: Simd>(&mut self, g: usize, n: usize) {
        let heads = self.part.rows().len();
        let (codes, end) = (self.layout.value_codes(), self.layout.value_statistics());
        for line in bytes(self.frame(g + BLOCK_GROUPS))[codes..end + 4 * SKETCH_TOKENS].chunks(64) {
            S::prefetch(line.as_ptr());
        }
        let frame_rows = &bytes(self.frame(g))[codes..end];
        let Scratch { weights, sums, rows: padded, .. } = &mut *self.scratch;
        let mut rows = frame_rows;
        if self.width != self.layout.row_bytes() {
            pad_rows(rows, self.width, padded);
            rows = &padded[..];
        }
        let of_head = |h: usize| &weights[h * BLOCK_GROUPS + n];
        for (pair, sums) in sums.chunks_mut(2 * 4 * self.width).enumerate() {
            // Of two heads one may have no weights: its unit is zero.
            let a = of_head(2 * pair);
            if 2 * pair + 1 == heads {
                if a.unit != 0.0 {
                    add_codes::<S, 1>(rows, [a], sums);
                }
            } else if a.unit != 0.0 || of_head(2 * pair + 1).unit != 0.0 {
                add_codes::<S, 2>(rows, [a, of_head(2 * pair + 1)], sums);
            }
        }
    }
}

/// Whether bit `page` is set.
#[inline(always)]
fn has(included: u8, page: usize) -> bool {
    included >> page & 1 == 1
}

/// Appends the largest included logit of every group (f32::MIN for none); returns the largest of all.
#[inline(always)]
fn largest_logits<S: Simd>(logits: &[f32], included: &[u8], most: &mut Vec<f32>) -> f32 {
    let mut all = S::splat(f32::MIN);
    for (logits, included) in logits.chunks_exact(SKETCH_TOKENS).zip(included) {
        let mut group = S::splat(f32::MIN);
        for page in 0..GROUP_PAGES {
            if has(*included, page) {
                // SAFETY: eight logits a page.
                group = unsafe { S::max(S::load(logits.as_ptr().add(page * PAGE_TOKENS)), group) };
            }
        }
        all = S::max(group, all);
        most.push(S::largest(group));
    }
    S::largest(all)
}

/// Adds a group to one head's totals; writes its weights a by page; returns the largest of each lane.
#[inline(always)]
fn weigh<S: Simd>(
    statistics: &[u16],
    included: u8,
    logits: &[f32],
    totals: &mut Totals,
    a: &mut [[f32; PAGE_TOKENS]; GROUP_PAGES],
) -> S::F {
    assert!(logits.len() == SKETCH_TOKENS && statistics.len() == 2 * SKETCH_TOKENS);
    let (largest, threshold, mut most) = (S::splat(totals.largest), S::splat(THRESHOLD), S::splat(0.0));
    // SAFETY: eight logits, pairs of statistics and weights a page, totals of eight.
    unsafe {
        let (mut p_sum, mut mean_sum) = (S::load(totals.p.as_ptr()), S::load(totals.p_mean.as_ptr()));
        for page in 0..GROUP_PAGES {
            if has(included, page) {
                let at = page * PAGE_TOKENS;
                let (mean, deviation) = S::load_bf16_even_odd(statistics.as_ptr().add(2 * at));
                let p = S::weight(S::sub(S::load(logits.as_ptr().add(at)), largest));
                p_sum = S::add(p_sum, p);
                mean_sum = S::fma(p, mean, mean_sum);
                let weight = S::mul(p, S::mul(deviation, threshold));
                S::store(a[page].as_mut_ptr(), weight);
                most = S::max(weight, most);
            }
        }
        S::store(totals.p.as_mut_ptr(), p_sum);
        S::store(totals.p_mean.as_mut_ptr(), mean_sum);
    }
    most
}

/// Rounds a group's weights to 8 bits, and adds them to `total`.
#[inline(always)]
fn round_weights<S: Simd>(
    a: &[[f32; PAGE_TOKENS]; GROUP_PAGES],
    inverse: f32,
    weights: &mut Weights,
    total: &mut [f32; 8],
) {
    let (inverse, zero) = (S::splat(inverse), S::splat(0.0));
    let (mut a8, mut sum) = ([zero; 8], zero);
    // SAFETY: eight weights a page, a total of eight, 64 bytes of weights.
    unsafe {
        for page in 0..GROUP_PAGES {
            a8[page] = S::round(S::mul(S::load(a[page].as_ptr()), inverse));
            sum = S::add(sum, a8[page]);
        }
        let out = weights.bytes.as_mut_ptr();
        S::store_u8(out, [a8[0], a8[1], a8[2], a8[3]]);
        S::store_u8(out.add(32), [a8[4], a8[5], a8[6], a8[7]]);
        S::store(total.as_mut_ptr(), S::fma(sum, S::splat(weights.unit), S::load(total.as_ptr())));
    }
}

/// Adds one group of codes `[48][width]` to the sums `[H][4][width]` of `H` query heads.
#[inline(always)]
fn add_codes<S: Simd, const H: usize>(rows: &[u8], weights: [&Weights; H], sums: &mut [f32]) {
    let width = sums.len() / 4 / H;
    assert!(rows.len() == SKETCH_TOKENS * width && sums.len() == 4 * H * width);
    // Sums of 24 pairs are at most 24 * 2 * 255 * 3 = 36,720. Excluded pages have zero weights.
    let zero = S::splat_byte(0);
    if width == 16 {
        let mut acc = [[zero; 4]; H];
        for pair in 0..GROUP_PAIRS {
            // SAFETY: rows are `[48][16]`, weights `[48]`.
            unsafe {
                let codes = S::interleave_halves(S::load_bytes(rows.as_ptr().add(2 * pair * 16)));
                add_pair::<S, H>(codes, weights, pair, &mut acc);
            }
        }
        // SAFETY: sums are `[H][4][16]`.
        unsafe { store_sums::<S, H>(acc, weights, sums.as_mut_ptr(), width, [0, 8]) };
        return;
    }
    for n in (0..width).step_by(32) {
        for half in 0..2 {
            let mut acc = [[zero; 4]; H];
            for pair in 0..GROUP_PAIRS {
                // SAFETY: rows are `[48][width]`, weights `[48]`.
                unsafe {
                    let (a, b) =
                        (rows.as_ptr().add(2 * pair * width + n), rows.as_ptr().add((2 * pair + 1) * width + n));
                    let codes = S::interleave(S::load_bytes(a), S::load_bytes(b))[half];
                    add_pair::<S, H>(codes, weights, pair, &mut acc);
                }
            }
            // SAFETY: sums are `[H][4][width]`; `interleave` gives the first or last eight bytes of each half.
            unsafe { store_sums::<S, H>(acc, weights, sums.as_mut_ptr(), width, [n + 8 * half, n + 8 * half + 16]) };
        }
    }
}

/// Adds a pair of tokens' alternating codes.
///
/// # Safety
/// `pair` is below 24.
#[inline(always)]
unsafe fn add_pair<S: Simd, const H: usize>(
    codes: S::I,
    weights: [&Weights; H],
    pair: usize,
    acc: &mut [[S::I; 4]; H],
) {
    let fields = S::fields(codes);
    for h in 0..H {
        // SAFETY: by the caller's promise.
        let w = unsafe { S::load_two_bytes(weights[h].bytes.as_ptr().add(2 * pair)) };
        for k in 0..4 {
            acc[h][k] = S::add_i16(acc[h][k], S::dot_pairs(w, fields[k]));
        }
    }
}

/// Adds the two eights of each accumulator, which stand for the bytes from `at` on.
///
/// # Safety
/// `sums` are `[H][4][width]`, and `at[i] + 8 <= width`.
#[inline(always)]
unsafe fn store_sums<S: Simd, const H: usize>(
    acc: [[S::I; 4]; H],
    weights: [&Weights; H],
    sums: *mut f32,
    width: usize,
    at: [usize; 2],
) {
    for h in 0..H {
        let unit = S::splat(weights[h].unit);
        for k in 0..4 {
            let eights = S::widen_u16(acc[h][k]);
            for i in 0..2 {
                // SAFETY: by the caller's promise.
                unsafe {
                    let sum = sums.add((4 * h + k) * width + at[i]);
                    S::store(sum, S::fma(eights[i], unit, S::load(sum)));
                }
            }
        }
    }
}

/// Writes a head's partial.
struct Finish<'a> {
    sums: &'a [f32],
    totals: &'a Totals,
    partial: &'a mut [f32],
}

impl Kernel for Finish<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let (d, totals) = (self.partial.len() - 2, self.totals);
        if totals.largest == f32::MIN {
            self.partial.fill(0.0);
            self.partial[d] = f32::NEG_INFINITY;
            return;
        }
        // SAFETY: eight lanes each.
        let (p, mean, weight) = unsafe {
            (
                S::sum(S::load(totals.p.as_ptr())),
                S::sum(S::load(totals.p_mean.as_ptr())),
                S::sum(S::load(totals.weight.as_ptr())),
            )
        };
        let quarters = self.partial[..d].chunks_exact_mut(d / 4).zip(self.sums.chunks_exact(self.sums.len() / 4));
        for (out, sums) in quarters {
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = (sum - 1.5 * weight + mean) / p;
            }
        }
        self.partial[d] = totals.largest + p.ln();
    }
}
