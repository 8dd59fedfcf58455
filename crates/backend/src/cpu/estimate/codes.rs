//! Estimate from value codes, with the token logits l that `score_codes` left.
//!
//! With p = e^(l - m), m the split's largest logit, and per token the value's mean and deviation:
//! ```text
//! y[c] = (sum p dev 0.996 code[c] + sum p (mean - 1.494 dev)) / sum p     rotated basis;   lse = m + ln sum p
//! ```
//! Skipped: a group of 48 tokens all of whose logits are more than 20.8 = 30 ln 2 below m. At most 8,192 tokens of
//! 2^-30 of the largest token's weight each: the output moves by less than 2^-17 of the values' spread.
//! Sums over codes are one chain of multiply-adds per channel, tokens ascending; the two sums without codes take
//! token `j` of each page in lane `j` of eight, pages ascending, and add the lanes as [`Simd::sum`] does.

use super::super::score_codes::bytes;
use super::super::simd::{Kernel, Simd};
use super::Part;
use crate::sketch::{GROUP_PAGES, SketchFrame, THRESHOLD};
use kv::PAGE_TOKENS;
use kv::geometry::SKETCH_TOKENS;
use std::cell::RefCell;

/// Logits this far below the largest weigh less than 2^-30 of it.
const NEGLIGIBLE: f32 = 20.794_415;

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch { included: Vec::new(), most: Vec::new(), sums: Vec::new() }) };
}

/// Room for one part.
struct Scratch {
    /// Per group, bit `j` for its page `j`: whether the page is an unselected candidate of this split.
    included: Vec<u8>,
    /// `[heads][groups]`: largest included logit.
    most: Vec<f32>,
    /// `[heads][4][padded row]`: sums over codes, times `4^k`.
    sums: Vec<f32>,
}

/// Writes the partial of every query head of the part.
pub(super) fn estimate(part: &Part<'_>) {
    SCRATCH.with_borrow_mut(|scratch| {
        let first = part.pages.start / GROUP_PAGES;
        let groups = part.pages.end.div_ceil(GROUP_PAGES) - first;
        scratch.included.clear();
        scratch.included.resize(groups, 0);
        for page in part.pages.clone().filter(|page| !part.is_selected(*page)) {
            scratch.included[page / GROUP_PAGES - first] |= 1 << (page % GROUP_PAGES);
        }
        let rows = part.rows();
        let mut row = rows.start;
        while row < rows.end {
            row += match rows.end - row {
                1 => estimate_heads::<1>(part, first, row, scratch),
                _ => estimate_heads::<2>(part, first, row, scratch),
            };
        }
    });
}

/// Writes the partials of `H` query heads from workspace row `row` on; returns `H`.
fn estimate_heads<const H: usize>(part: &Part<'_>, first: usize, row: usize, scratch: &mut Scratch) -> usize {
    let rt = part.rt;
    let logits: [&[f32]; H] = std::array::from_fn(|h| {
        let tokens = &rt.work.token_logits.all()[(row + h) * rt.work.max_tokens..][..rt.work.max_tokens];
        &tokens[first * SKETCH_TOKENS..(first + scratch.included.len()) * SKETCH_TOKENS]
    });
    let partials: [&mut [f32]; H] = std::array::from_fn(|h| part.partial(row + h));
    let layout = SketchFrame { head_dim: rt.shape.geometry.head_dim };
    let frame = |g: usize| bytes(rt.frame(part.lane.summary_rows[first + g], part.layer, part.head)).as_ptr();
    rt.isa.run(Heads { layout, frame, logits, partials, scratch });
    H
}

/// `H` query heads over the groups of one split; `frame(g)` points to group `g`'s frame.
struct Heads<'a, F: Fn(usize) -> *const u8, const H: usize> {
    layout: SketchFrame,
    frame: F,
    logits: [&'a [f32]; H],
    partials: [&'a mut [f32]; H],
    scratch: &'a mut Scratch,
}

impl<F: Fn(usize) -> *const u8, const H: usize> Kernel for Heads<'_, F, H> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self) {
        let groups = self.scratch.included.len();
        let row_bytes = self.layout.row_bytes();
        let width = row_bytes.next_multiple_of(8);
        let most = self.largest::<S>();
        self.scratch.sums.clear();
        self.scratch.sums.resize(H * 4 * width, 0.0);
        let (mut total, mut base) = ([S::splat(0.0); H], [S::splat(0.0); H]);
        for g in 0..groups {
            let alive = (0..H).any(|h| self.scratch.most[h * groups + g] >= most[h] - NEGLIGIBLE);
            if self.scratch.included[g] == 0 || !alive {
                continue;
            }
            let frame = (self.frame)(g);
            let mut weights = [[0.0; SKETCH_TOKENS]; H];
            for h in 0..H {
                if self.scratch.most[h * groups + g] >= most[h] - NEGLIGIBLE {
                    let (t, b) = self.weigh::<S>(frame, g, h, most[h], &mut weights[h]);
                    (total[h], base[h]) = (S::add(total[h], t), S::add(base[h], b));
                }
            }
            // SAFETY: the frame has 48 code rows and statistics behind them; sums are `[H][4][width]`.
            unsafe { self.add_codes::<S>(frame, g, width, &weights) };
        }
        for h in 0..H {
            let (total, base) = (S::sum(total[h]), S::sum(base[h]));
            let partial = &mut *self.partials[h];
            let d = partial.len() - 2;
            if most[h] == f32::NEG_INFINITY {
                partial.fill(0.0);
                partial[d] = f32::NEG_INFINITY;
                continue;
            }
            let mut field = 1.0;
            for k in 0..4 {
                let sums = &self.scratch.sums[(h * 4 + k) * width..][..row_bytes];
                for (out, sum) in partial[k * row_bytes..(k + 1) * row_bytes].iter_mut().zip(sums) {
                    *out = (sum * field + base) / total;
                }
                field *= 0.25;
            }
            partial[d] = most[h] + total.ln();
        }
    }
}

impl<F: Fn(usize) -> *const u8, const H: usize> Heads<'_, F, H> {
    /// Fills `scratch.most`; returns the largest of each head.
    #[inline(always)]
    fn largest<S: Simd>(&mut self) -> [f32; H] {
        let groups = self.scratch.included.len();
        self.scratch.most.clear();
        self.scratch.most.resize(H * groups, f32::NEG_INFINITY);
        let mut largest = [f32::NEG_INFINITY; H];
        for h in 0..H {
            for g in 0..groups {
                let included = self.scratch.included[g];
                let logits = &self.logits[h][g * SKETCH_TOKENS..(g + 1) * SKETCH_TOKENS];
                let mut most = S::splat(f32::NEG_INFINITY);
                for page in (0..GROUP_PAGES).filter(|page| included >> page & 1 == 1) {
                    // SAFETY: eight logits a page.
                    most = unsafe { S::max(S::load(logits.as_ptr().add(page * PAGE_TOKENS)), most) };
                }
                let most = S::largest(most);
                self.scratch.most[h * groups + g] = most;
                largest[h] = largest[h].max(most);
            }
        }
        largest
    }

    /// Writes `p * dev * 0.996` of the included tokens of a group; returns lanes of `p` and `p (mean - 1.494 dev)`.
    #[inline(always)]
    fn weigh<S: Simd>(
        &self,
        frame: *const u8,
        g: usize,
        h: usize,
        most: f32,
        weights: &mut [f32; SKETCH_TOKENS],
    ) -> (S::F, S::F) {
        let (mut total, mut base) = (S::splat(0.0), S::splat(0.0));
        let logits = &self.logits[h][g * SKETCH_TOKENS..(g + 1) * SKETCH_TOKENS];
        let included = self.scratch.included[g];
        for page in (0..GROUP_PAGES).filter(|page| included >> page & 1 == 1) {
            let at = page * PAGE_TOKENS;
            // SAFETY: eight logits and weights a page; eight (mean, deviation) pairs a page in the frame.
            unsafe {
                let statistics = frame.add(self.layout.value_statistics() + 4 * at).cast();
                let (mean, deviation) = S::load_bf16_even_odd(statistics);
                let p = S::exp(S::sub(S::load(logits.as_ptr().add(at)), S::splat(most)));
                let lowest = S::fma(deviation, S::splat(-1.5 * THRESHOLD), mean);
                total = S::add(total, p);
                base = S::fma(p, lowest, base);
                S::store(weights.as_mut_ptr().add(at), S::mul(p, S::mul(deviation, S::splat(THRESHOLD))));
            }
        }
        (total, base)
    }

    /// Adds the group's `weight * code * 4^field` to the sums.
    ///
    /// # Safety
    /// `frame` is a whole frame; `scratch.sums` has `[H][4][width]` elements, `width` the row bytes rounded up to 8.
    #[inline(always)]
    unsafe fn add_codes<S: Simd>(
        &mut self,
        frame: *const u8,
        g: usize,
        width: usize,
        weights: &[[f32; SKETCH_TOKENS]; H],
    ) {
        let (row_bytes, included) = (self.layout.row_bytes(), self.scratch.included[g]);
        for octet in (0..width).step_by(8) {
            // SAFETY: by the caller's promise; the last octet of a row reads into what follows it in the frame.
            unsafe {
                let codes = frame.add(self.layout.value_codes() + octet);
                let sums = self.scratch.sums.as_mut_ptr().add(octet);
                let mut acc = [[S::splat(0.0); 4]; H];
                for h in 0..H {
                    for k in 0..4 {
                        acc[h][k] = S::load(sums.add((h * 4 + k) * width));
                    }
                }
                for page in (0..GROUP_PAGES).filter(|page| included >> page & 1 == 1) {
                    for t in page * PAGE_TOKENS..(page + 1) * PAGE_TOKENS {
                        let fields = S::load_fields_f32(codes.add(t * row_bytes));
                        for h in 0..H {
                            let weight = S::splat(*weights[h].get_unchecked(t));
                            for k in 0..4 {
                                acc[h][k] = S::fma(weight, fields[k], acc[h][k]);
                            }
                        }
                    }
                }
                for h in 0..H {
                    for k in 0..4 {
                        S::store(sums.add((h * 4 + k) * width), acc[h][k]);
                    }
                }
            }
        }
    }
}
