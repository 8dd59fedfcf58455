//! Scores of coded tokens: an int8 query per group of 48 tokens against 2-bit codes.
//!
//! Per (query head, group), with q' = R_k q (a chain of multiply-adds per output and lane of eight, inputs ascending,
//! the lanes added as [`Simd::sum`] does) and the group's bf16 means and deviations:
//! ```text
//! w = q' * deviation;  w8 = round(w * (127 / max|w|)), ties to even;  s = max|w| / 127
//! qm = sum q' mean       eight chains of multiply-adds over the quarters (padded with zeros), added as Simd::sum
//! logit = (sum w8 code - 1.5 sum w8) * (0.996 s / sqrt(d)) + qm / sqrt(d)
//! page score = m + ln(sum over its 8 tokens of e^(logit - m)), m the largest
//! ```
//! The integers are exact in any order, and the half-integer in the brackets is exact in f32. Everything is a
//! function of query and group, so results do not depend on how groups are spread.

use super::lanes::Lane;
use super::runtime::{CpuRuntime, rows, vector};
use super::simd::{Kernel, Simd};
use super::workspace::padded_row_bytes;
use crate::sketch::{GROUP_PAGES, SketchFrame, THRESHOLD};
use crate::{AlgorithmId, View, Weight};
use kv::PAGE_TOKENS;
use kv::geometry::SKETCH_TOKENS;
use kv::selection::Selected;
use std::cell::RefCell;
use std::ops::Range;

/// Groups of one task: whole eights of pages.
const TASK_GROUPS: usize = 32;

/// How far ahead frames are asked for: they lie a row apart, where no hardware prefetcher looks.
const PREFETCH_GROUPS: usize = 4;

/// Largest `d`: four quarters of 64 codes.
const WIDTH_MOST: usize = 256;

/// See [`crate::Runtime`].
pub(super) fn score_codes(rt: &CpuRuntime, algorithm: AlgorithmId, layer: usize, q: View<'_>, key_rotation: &Weight) {
    let lanes = rt.lanes();
    let (heads, d) = (rt.shape.geometry.kv_heads, rt.shape.geometry.head_dim);
    let (q, q_heads, group) = (rows(q, lanes.active.len()), rt.shape.q_heads, rt.group());
    let (rotation, stride) = (vector(key_rotation), rt.work.rotated_stride);
    assert_eq!(rotation.len(), heads * d * d, "a key rotation [kv_heads, d, d]");
    let lanes = lanes.of(algorithm);
    rt.threads.each(lanes.len() * heads, lanes.len() * q_heads * d * d, |task| {
        let ((i, _), head) = (&lanes[task / heads], task % heads);
        let rotation = &rotation[head * d * d..(head + 1) * d * d];
        for row in i * q_heads + head * group..i * q_heads + (head + 1) * group {
            // SAFETY: this task alone writes this head's rotated query.
            let out = unsafe { rt.work.rotated_q.part(row * stride..(row + 1) * stride) };
            rt.isa.run(RotateQuery { rotation, q: &q[row * d..(row + 1) * d], out });
        }
    });
    for (i, lane) in lanes {
        let pages = match lane.selection.at(lane.len) {
            Selected::AllExact(_) => continue,
            Selected::Pages { indexed, .. } => indexed,
        };
        assert!(pages.is_multiple_of(GROUP_PAGES), "the sketch indexes whole groups");
        let groups = pages / GROUP_PAGES;
        let tasks = groups.div_ceil(TASK_GROUPS);
        rt.threads.each(tasks * heads, groups * q_heads * SKETCH_TOKENS * 8, |task| {
            let (head, first) = (task / tasks, task % tasks * TASK_GROUPS);
            score_groups(rt, lane, i, layer, head, first..groups.min(first + TASK_GROUPS));
        });
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch::new()) };
}

/// One group as the kernels read it, quarters padded to `row_bytes` elements; and room for int8 queries.
struct Scratch {
    codes: Vec<u8>,
    mean: Vec<f32>,
    deviation: Vec<f32>,
    w8: Vec<i8>,
}

impl Scratch {
    const fn new() -> Self {
        Scratch { codes: Vec::new(), mean: Vec::new(), deviation: Vec::new(), w8: Vec::new() }
    }
}

/// Token logits and page scores of `groups`, for the query heads of one KV head.
fn score_groups(rt: &CpuRuntime, lane: &Lane, i: usize, layer: usize, head: usize, groups: Range<usize>) {
    let (d, group, first_row) = (rt.shape.geometry.head_dim, rt.group(), i * rt.shape.q_heads + head * rt.group());
    let layout = SketchFrame { head_dim: d };
    SCRATCH.with_borrow_mut(|scratch| {
        for g in groups.clone() {
            let frame = rt.frame(lane.summary_rows[g], layer, head);
            let next = lane.summary_rows[(g + PREFETCH_GROUPS).min(groups.end - 1)];
            let next = rt.frame(next, layer, head).as_ptr().cast();
            rt.isa.run(Widen { frame, layout, scratch });
            let codes = match padded_row_bytes(d) == layout.row_bytes() {
                true => &bytes(frame)[layout.key_codes()..layout.value_codes()],
                false => &scratch.codes[..],
            };
            let mut h = 0;
            while h < group {
                let chunk = Chunk { rt, row: first_row + h, g, codes, next };
                h += match group - h {
                    1 => chunk.score::<1>(&scratch.mean, &scratch.deviation, &mut scratch.w8),
                    2 | 3 => chunk.score::<2>(&scratch.mean, &scratch.deviation, &mut scratch.w8),
                    _ => chunk.score::<4>(&scratch.mean, &scratch.deviation, &mut scratch.w8),
                };
            }
        }
    });
    let pages = groups.start * GROUP_PAGES..groups.end * GROUP_PAGES;
    for row in first_row..first_row + group {
        let (tokens, at) = (row * rt.work.max_tokens, row * rt.work.max_pages);
        let tokens = tokens + pages.start * PAGE_TOKENS..tokens + pages.end * PAGE_TOKENS;
        // SAFETY: this task alone writes these scores, and it has written these logits.
        let (logits, scores) =
            unsafe { (rt.work.token_logits.slice(tokens), rt.work.page_scores.part(at + pages.start..at + pages.end)) };
        rt.isa.run(PageScores { logits, scores });
    }
}

/// The bytes of a frame.
pub(super) fn bytes(frame: &[u16]) -> &[u8] {
    // SAFETY: the same memory; bytes have no alignment and every value is one.
    unsafe { std::slice::from_raw_parts(frame.as_ptr().cast(), 2 * frame.len()) }
}

/// Copies 48 rows of codes to rows of `padded` bytes.
pub(super) fn pad_rows(rows: &[u8], padded: usize, out: &mut Vec<u8>) {
    let row_bytes = rows.len() / SKETCH_TOKENS;
    out.clear();
    out.resize(SKETCH_TOKENS * padded, 0);
    for (row, out) in rows.chunks_exact(row_bytes).zip(out.chunks_exact_mut(padded)) {
        out[..row_bytes].copy_from_slice(row);
    }
}

/// Up to four query heads of a KV head, from row `row` of the workspace on, against one group.
struct Chunk<'a> {
    rt: &'a CpuRuntime,
    row: usize,
    g: usize,
    codes: &'a [u8],
    next: *const u8,
}

impl Chunk<'_> {
    /// Writes the token logits of `H` heads; returns `H`.
    fn score<const H: usize>(self, mean: &[f32], deviation: &[f32], w8: &mut Vec<i8>) -> usize {
        let (work, d) = (&self.rt.work, self.rt.shape.geometry.head_dim);
        w8.resize(H * work.rotated_stride, 0);
        let logits = std::array::from_fn(|h| {
            let first = (self.row + h) * work.max_tokens + self.g * SKETCH_TOKENS;
            // SAFETY: this task alone writes these logits.
            unsafe { work.token_logits.part(first..first + SKETCH_TOKENS) }
        });
        let q = &work.rotated_q.all()[self.row * work.rotated_stride..(self.row + H) * work.rotated_stride];
        let scale = 1.0 / (d as f32).sqrt();
        let Chunk { rt, codes, next, .. } = self;
        rt.isa.run(TokenLogits::<H> { q, mean, deviation, codes, next, scale, w8, logits });
        H
    }
}

/// `out` = the rotated query, quarter `k` from `k * out.len() / 4` on, the rest zero.
struct RotateQuery<'a> {
    rotation: &'a [f32],
    q: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for RotateQuery<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let d = self.q.len();
        assert!(self.rotation.len() == d * d && d.is_multiple_of(8));
        let (quarter, padded) = (d / 4, self.out.len() / 4);
        self.out.fill(0.0);
        for c in 0..d {
            let mut acc = S::splat(0.0);
            for i in (0..d).step_by(8) {
                // SAFETY: row `c` of `[d][d]` and the query have eight elements from `i` on.
                unsafe {
                    acc = S::fma(S::load(self.rotation.as_ptr().add(c * d + i)), S::load(self.q.as_ptr().add(i)), acc);
                }
            }
            self.out[c / quarter * padded + c % quarter] = S::sum(acc);
        }
    }
}

/// Reads a frame's key statistics, and its code rows where they need padding.
struct Widen<'a> {
    frame: &'a [u16],
    layout: SketchFrame,
    scratch: &'a mut Scratch,
}

impl Kernel for Widen<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let (d, quarter) = (self.layout.head_dim, self.layout.row_bytes());
        let padded = padded_row_bytes(d);
        let Scratch { codes, mean, deviation, .. } = self.scratch;
        mean.resize(4 * padded, 0.0);
        deviation.resize(4 * padded, 0.0);
        let deviations = self.layout.deviations() / 2;
        if quarter == padded {
            for c in (0..d).step_by(8) {
                // SAFETY: `c..c + 8` lie inside the frame's `d` means and `d` deviations, and inside both arrays.
                unsafe {
                    S::store(mean.as_mut_ptr().add(c), S::load_bf16(self.frame.as_ptr().add(c)));
                    S::store(deviation.as_mut_ptr().add(c), S::load_bf16(self.frame.as_ptr().add(deviations + c)));
                }
            }
            return;
        }
        let element = |i: usize| f32::from_bits(u32::from(self.frame[i]) << 16);
        for k in 0..4 {
            for j in 0..padded {
                let inside = j < quarter;
                mean[k * padded + j] = if inside { element(k * quarter + j) } else { 0.0 };
                deviation[k * padded + j] = if inside { element(deviations + k * quarter + j) } else { 0.0 };
            }
        }
        pad_rows(&bytes(self.frame)[self.layout.key_codes()..self.layout.value_codes()], padded, codes);
    }
}

/// The logits of 48 tokens for `H` query heads.
struct TokenLogits<'a, const H: usize> {
    /// `[H][4 * row_bytes]`
    q: &'a [f32],
    /// `[4 * row_bytes]`
    mean: &'a [f32],
    /// `[4 * row_bytes]`
    deviation: &'a [f32],
    /// `[48][row_bytes]`
    codes: &'a [u8],
    /// The frame that is read next.
    next: *const u8,
    scale: f32,
    /// `[H][4 * row_bytes]`, written.
    w8: &'a mut [i8],
    logits: [&'a mut [f32]; H],
}

impl<const H: usize> Kernel for TokenLogits<'_, H> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self) {
        let row_bytes = self.codes.len() / SKETCH_TOKENS;
        let (mut a, mut b, mut shift) = ([0.0; H], [0.0; H], [0.0; H]);
        for h in 0..H {
            (a[h], b[h], shift[h]) = self.quantise::<S>(h, 4 * row_bytes);
        }
        for page in 0..GROUP_PAGES {
            // Half a frame, `64 row_bytes`, a sixth a page.
            for line in page * row_bytes / GROUP_PAGES..(page + 1) * row_bytes / GROUP_PAGES {
                S::prefetch(self.next.wrapping_add(64 * line));
            }
            // SAFETY: 48 rows of codes and `[H][4][row_bytes]` weights are in bounds.
            let sums = unsafe {
                match row_bytes {
                    16 => self.sums_of_16::<S>(page),
                    _ => self.sums_of_32::<S>(page, row_bytes),
                }
            };
            for h in 0..H {
                let level = S::sub(sums[h], S::splat(shift[h]));
                let logit = S::add(S::mul(level, S::splat(a[h])), S::splat(b[h]));
                let out = &mut self.logits[h][page * PAGE_TOKENS..(page + 1) * PAGE_TOKENS];
                // SAFETY: `out` has eight elements.
                unsafe { S::store(out.as_mut_ptr(), logit) };
            }
        }
    }
}

impl<const H: usize> TokenLogits<'_, H> {
    /// Writes `w8` of head `h`; returns what multiplies the sums, what is added, and 1.5 times the sum of `w8`.
    #[inline(always)]
    fn quantise<S: Simd>(&mut self, h: usize, width: usize) -> (f32, f32, f32) {
        assert!(width.is_multiple_of(32) && self.mean.len() == width && self.deviation.len() == width);
        assert!(width <= WIDTH_MOST && self.q.len() == H * width && self.w8.len() >= H * width);
        let (zero, sign) = (S::splat(0.0), S::splat(-1.0));
        let (mut most, mut dot) = (zero, zero);
        let mut sum = S::add_neighbours(S::dot_pairs(S::splat_byte(0), S::splat_byte(0)));
        // SAFETY: `width` elements of each array, by the assertions.
        unsafe {
            let (q, mean, deviation) = (self.q.as_ptr().add(h * width), self.mean.as_ptr(), self.deviation.as_ptr());
            for c in (0..width).step_by(8) {
                let q = S::load(q.add(c));
                let w = S::mul(q, S::load(deviation.add(c)));
                most = S::max(most, S::max(w, S::mul(w, sign)));
                dot = S::fma(q, S::load(mean.add(c)), dot);
            }
            let most = S::largest(most);
            let inverse = S::splat(if most > 1e-30 { 127.0 / most } else { 0.0 });
            for c in (0..width).step_by(32) {
                let mut w = [zero; 4];
                for k in 0..4 {
                    let at = c + 8 * k;
                    w[k] = S::mul(S::mul(S::load(q.add(at)), S::load(deviation.add(at))), inverse);
                }
                let w8 = self.w8.as_mut_ptr().add(h * width + c);
                S::store_rounded_i8(w8, w);
                sum = S::add_i16(sum, S::dot_pairs(S::splat_byte(1), S::load_bytes(w8.cast())));
            }
            let zero = S::splat_byte(0);
            let mut lanes = [0.0; 8];
            S::store(
                lanes.as_mut_ptr(),
                S::sums_i32([S::add_neighbours(sum), zero, zero, zero, zero, zero, zero, zero]),
            );
            (THRESHOLD * (most / 127.0) * self.scale, S::sum(dot) * self.scale, 1.5 * lanes[0])
        }
    }

    /// `sum w8 code` of the page's eight tokens, two rows of 16 bytes a load.
    ///
    /// # Safety
    /// Codes are `[48][16]`, weights `[H][4][16]`.
    #[inline(always)]
    unsafe fn sums_of_16<S: Simd>(&self, page: usize) -> [S::F; H] {
        let mut pairs = [[S::splat_byte(0); 4]; H];
        for pair in 0..4 {
            // SAFETY: by the caller's promise.
            unsafe {
                let fields = S::fields(S::load_bytes(self.codes.as_ptr().add((page * PAGE_TOKENS + 2 * pair) * 16)));
                for h in 0..H {
                    let w8 = self.w8.as_ptr().add(h * 64).cast::<u8>();
                    let mut sum = S::dot_pairs(fields[0], S::load_bytes_twice(w8));
                    for k in 1..4 {
                        sum = S::add_i16(sum, S::dot_pairs(fields[k], S::load_bytes_twice(w8.add(16 * k))));
                    }
                    pairs[h][pair] = S::add_neighbours(sum);
                }
            }
        }
        let mut out = [S::splat(0.0); H];
        for h in 0..H {
            out[h] = S::half_sums_i32(pairs[h]);
        }
        out
    }

    /// The same for rows of whole 32 bytes.
    ///
    /// # Safety
    /// Codes are `[48][row_bytes]`, weights `[H][4][row_bytes]`.
    #[inline(always)]
    unsafe fn sums_of_32<S: Simd>(&self, page: usize, row_bytes: usize) -> [S::F; H] {
        let mut tokens = [[S::splat_byte(0); 8]; H];
        for t in 0..8 {
            let mut sums = [S::splat_byte(0); H];
            for n in (0..row_bytes).step_by(32) {
                // SAFETY: by the caller's promise.
                unsafe {
                    let row = self.codes.as_ptr().add((page * PAGE_TOKENS + t) * row_bytes + n);
                    let fields = S::fields(S::load_bytes(row));
                    for h in 0..H {
                        let w8 = self.w8.as_ptr().add(h * 4 * row_bytes + n).cast::<u8>();
                        for k in 0..4 {
                            let product = S::dot_pairs(fields[k], S::load_bytes(w8.add(row_bytes * k)));
                            sums[h] = S::add_i16(sums[h], product);
                        }
                    }
                }
            }
            for h in 0..H {
                tokens[h][t] = S::add_neighbours(sums[h]);
            }
        }
        let mut out = [S::splat(0.0); H];
        for h in 0..H {
            out[h] = S::sums_i32(tokens[h]);
        }
        out
    }
}

/// Log-sum-exp of every page's eight logits.
struct PageScores<'a> {
    logits: &'a [f32],
    scores: &'a mut [f32],
}

impl Kernel for PageScores<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        assert_eq!(self.logits.len(), PAGE_TOKENS * self.scores.len());
        let pages = self.scores.len();
        for (n, scores) in self.scores.chunks_mut(8).enumerate() {
            let mut x = [S::splat(0.0); 8];
            for j in 0..8 {
                let page = (8 * n + j).min(pages - 1);
                // SAFETY: eight logits a page, by the assertion.
                x[j] = unsafe { S::load(self.logits.as_ptr().add(page * PAGE_TOKENS)) };
            }
            let most = S::maxes(x);
            let mut mosts = [0.0; 8];
            // SAFETY: `mosts` has eight elements.
            unsafe { S::store(mosts.as_mut_ptr(), most) };
            for j in 0..8 {
                x[j] = S::exp(S::sub(x[j], S::splat(mosts[j])));
            }
            let mut out = [0.0; 8];
            // SAFETY: `out` has eight elements.
            unsafe { S::store(out.as_mut_ptr(), S::add(most, S::ln(S::sums(x)))) };
            let count = scores.len();
            scores.copy_from_slice(&out[..count]);
        }
    }
}
