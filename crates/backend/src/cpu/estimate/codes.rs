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
//! Groups add up in ascending order; `sum p`, `sum p mean` and `sum a8` take a group's tokens lane by lane, vectors
//! ascending, and add the lanes as [`Lanes::sum`] does.

use super::super::score_codes::{bytes, pad_rows};
use super::super::simd::{Kernel, Lanes, MOST_LANES, Simd};
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
    p: [f32; MOST_LANES],
    p_mean: [f32; MOST_LANES],
    /// Sum of `(A / 255) a8`.
    weight: [f32; MOST_LANES],
}

impl Totals {
    const NONE: Totals =
        Totals { largest: f32::MIN, p: [0.0; MOST_LANES], p_mean: [0.0; MOST_LANES], weight: [0.0; MOST_LANES] };
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
        self.included.resize(groups, (1 << GROUP_PAGES) - 1);
        let outside = [first * GROUP_PAGES..part.pages.start, part.pages.end..(first + groups) * GROUP_PAGES];
        for page in outside.into_iter().flatten().chain(part.selected()) {
            self.included[page / GROUP_PAGES - first] &= !(1 << (page % GROUP_PAGES));
        }
        self.most.clear();
        self.sums.clear();
        self.sums.resize(heads * 4 * width, 0.0);
        self.totals.clear();
        self.totals.resize(heads, Totals::NONE);
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
    fn run<S: Simd>(self) {
        self.add_up::<S::Wide>();
    }
}

impl Split<'_> {
    #[inline(always)]
    fn add_up<L: Lanes>(mut self) {
        for (h, row) in self.part.rows().enumerate() {
            let (logits, scratch) = (self.logits(row), &mut *self.scratch);
            let largest = largest_logits::<L>(logits, &scratch.included, &mut scratch.most);
            scratch.totals[h].largest = largest;
        }
        for block in (0..self.groups).step_by(BLOCK_GROUPS) {
            let block = block..self.groups.min(block + BLOCK_GROUPS);
            for h in 0..self.part.rows().len() {
                self.weigh_block::<L>(block.clone(), h);
            }
            for g in block.clone() {
                self.add_group::<L>(g, g - block.start);
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
    fn weigh_block<L: Lanes>(&mut self, block: Range<usize>, h: usize) {
        let logits = self.logits(self.part.rows().start + h);
        let groups = self.groups;
        // Of the block's groups, and of the one behind them.
        let statistics: [&[u16]; BLOCK_GROUPS + 1] = std::array::from_fn(|n| {
            &self.frame(block.start + n)[self.layout.value_statistics() / 2..][..2 * SKETCH_TOKENS]
        });
        let mut most = [L::splat(0.0); BLOCK_GROUPS];
        let mut a = [[0.0; SKETCH_TOKENS]; BLOCK_GROUPS];
        let Scratch { included, most: largest_of, totals, weights, .. } = &mut *self.scratch;
        let Totals { largest, p, p_mean, weight } = &mut totals[h];
        // SAFETY: totals of the widest vector.
        let mut sums = unsafe { [L::load(p.as_ptr()), L::load(p_mean.as_ptr()), L::load(weight.as_ptr())] };
        for (n, g) in block.enumerate() {
            for line in statistics[n + 1].chunks(32) {
                L::prefetch_near(line.as_ptr().cast());
            }
            if included[g] != 0 && largest_of[h * groups + g] >= *largest - NEGLIGIBLE {
                let logits = &logits[g * SKETCH_TOKENS..(g + 1) * SKETCH_TOKENS];
                most[n] = weigh::<L>(statistics[n], included[g], logits, *largest, &mut sums, &mut a[n]);
            }
        }
        let most = L::largests(most);
        let weights = &mut weights[h * BLOCK_GROUPS..(h + 1) * BLOCK_GROUPS];
        for n in 0..BLOCK_GROUPS {
            let some = most[n] >= 1e-30;
            weights[n].unit = if some { most[n] / 255.0 } else { 0.0 };
            let inverse = if some { 255.0 / most[n] } else { 0.0 };
            let sum = round_weights::<L>(&a[n], inverse, &mut weights[n].bytes);
            sums[2] = L::fma(sum, L::splat(weights[n].unit), sums[2]);
        }
        // SAFETY: as above.
        unsafe {
            L::store(p.as_mut_ptr(), sums[0]);
            L::store(p_mean.as_mut_ptr(), sums[1]);
            L::store(weight.as_mut_ptr(), sums[2]);
        }
    }

    /// Adds a group, the `n`-th of its block, to all heads' sums.
    #[inline(always)]
    fn add_group<L: Lanes>(&mut self, g: usize, n: usize) {
        let heads = self.part.rows().len();
        let (codes, end) = (self.layout.value_codes(), self.layout.value_statistics());
        for line in bytes(self.frame(g + BLOCK_GROUPS))[codes..end + 4 * SKETCH_TOKENS].chunks(64) {
            L::prefetch(line.as_ptr());
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
                    add_codes::<L, 1>(rows, [a], sums);
                }
            } else if a.unit != 0.0 || of_head(2 * pair + 1).unit != 0.0 {
                add_codes::<L, 2>(rows, [a, of_head(2 * pair + 1)], sums);
            }
        }
    }
}

/// Which of a vector's eights of tokens, from `token` of the group on, are of included pages.
#[derive(Clone, Copy)]
enum Eights {
    None,
    All,
    /// Included ones 1, the others 0.
    Some([f32; MOST_LANES / 8]),
}

impl Eights {
    #[inline(always)]
    fn of<L: Lanes>(included: u8, token: usize) -> Self {
        let (bits, all) = (included >> (token / PAGE_TOKENS), (1 << L::EIGHTS) - 1);
        match bits & all {
            0 => Eights::None,
            some if some == all => Eights::All,
            some => Eights::Some(std::array::from_fn(|i| f32::from(some >> i & 1))),
        }
    }
}

/// Appends the largest included logit of every group (f32::MIN for none); returns the largest of all.
#[inline(always)]
fn largest_logits<L: Lanes>(logits: &[f32], included: &[u8], most: &mut Vec<f32>) -> f32 {
    let none = L::splat(f32::MIN);
    for (logits, included) in logits.chunks(8 * SKETCH_TOKENS).zip(included.chunks(8)) {
        let mut groups = [none; 8];
        for (n, included) in included.iter().enumerate() {
            for token in (0..SKETCH_TOKENS).step_by(L::LANES) {
                // SAFETY: 48 logits a group.
                let x = unsafe { L::load(logits.as_ptr().add(n * SKETCH_TOKENS + token)) };
                groups[n] = match Eights::of::<L>(*included, token) {
                    Eights::None => groups[n],
                    Eights::All => L::max(x, groups[n]),
                    Eights::Some(which) => {
                        let bounds = which.map(|one| if one == 1.0 { f32::MAX } else { f32::MIN });
                        // SAFETY: as many elements as there are eights.
                        L::max(L::min(x, unsafe { L::splat_eights(bounds.as_ptr()) }), groups[n])
                    }
                };
            }
        }
        most.extend_from_slice(&L::largests(groups)[..included.len()]);
    }
    most.iter().copied().fold(f32::MIN, f32::max)
}

/// Adds a group to one head's sums of p and of p mean; writes its weights a; returns the largest of each lane.
#[inline(always)]
fn weigh<L: Lanes>(
    statistics: &[u16],
    included: u8,
    logits: &[f32],
    largest: f32,
    sums: &mut [L::F; 3],
    a: &mut [f32; SKETCH_TOKENS],
) -> L::F {
    assert!(logits.len() == SKETCH_TOKENS && statistics.len() == 2 * SKETCH_TOKENS);
    let (largest, threshold, zero) = (L::splat(largest), L::splat(THRESHOLD), L::splat(0.0));
    let mut most = zero;
    for token in (0..SKETCH_TOKENS).step_by(L::LANES) {
        // SAFETY: 48 logits, pairs of statistics and weights.
        unsafe {
            let x = L::sub(L::load(logits.as_ptr().add(token)), largest);
            let p = match Eights::of::<L>(included, token) {
                Eights::None => continue,
                Eights::All => L::weight(x),
                // What is excluded may be larger than the largest.
                Eights::Some(which) => L::mul(L::weight(L::min(x, zero)), L::splat_eights(which.as_ptr())),
            };
            let (mean, deviation) = L::load_bf16_even_odd(statistics.as_ptr().add(2 * token));
            sums[0] = L::add(sums[0], p);
            sums[1] = L::fma(p, mean, sums[1]);
            let weight = L::mul(p, L::mul(deviation, threshold));
            L::store(a.as_mut_ptr().add(token), weight);
            most = L::max(weight, most);
        }
    }
    most
}

/// Rounds a group's weights to 8 bits; returns their sums lane by lane.
#[inline(always)]
fn round_weights<L: Lanes>(a: &[f32; SKETCH_TOKENS], inverse: f32, bytes: &mut [u8; 64]) -> L::F {
    let (inverse, zero) = (L::splat(inverse), L::splat(0.0));
    let mut sum = zero;
    for token in (0..SKETCH_TOKENS).step_by(4 * L::LANES) {
        let mut a8 = [zero; 4];
        // SAFETY: 48 weights, room for 64.
        unsafe {
            for i in 0..4.min((SKETCH_TOKENS - token) / L::LANES) {
                a8[i] = L::mul(L::load(a.as_ptr().add(token + i * L::LANES)), inverse);
            }
            sum = L::add(sum, L::store_rounded_u8(bytes.as_mut_ptr().add(token), a8));
        }
    }
    sum
}

/// Adds one group of codes `[48][width]` to the sums `[H][4][width]` of `H` query heads.
#[inline(always)]
fn add_codes<L: Lanes, const H: usize>(rows: &[u8], weights: [&Weights; H], sums: &mut [f32]) {
    let width = sums.len() / 4 / H;
    assert!(rows.len() == SKETCH_TOKENS * width && sums.len() == 4 * H * width && width.is_multiple_of(16));
    let (bytes, units) = (weights.map(|w| w.bytes.as_ptr()), weights.map(|w| w.unit));
    // Excluded pages have zero weights.
    // SAFETY: by the assertion; 64 bytes of weights.
    unsafe { L::add_codes::<H>(rows.as_ptr(), width, bytes, units, sums.as_mut_ptr()) };
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
        let [p, mean, weight] = [totals.p, totals.p_mean, totals.weight].map(|lanes| lanes_sum::<S::Wide>(&lanes));
        let quarters = self.partial[..d].chunks_exact_mut(d / 4).zip(self.sums.chunks_exact(self.sums.len() / 4));
        for (out, sums) in quarters {
            for (out, sum) in out.iter_mut().zip(sums) {
                *out = (sum - 1.5 * weight + mean) / p;
            }
        }
        self.partial[d] = totals.largest + p.ln();
    }
}

#[inline(always)]
fn lanes_sum<L: Lanes>(lanes: &[f32; MOST_LANES]) -> f32 {
    // SAFETY: the widest vector.
    L::sum(unsafe { L::load(lanes.as_ptr()) })
}
