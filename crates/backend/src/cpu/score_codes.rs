//! Scores of coded tokens: an int8 query per group of 48 tokens against 2-bit codes.
//!
//! Per (query head, group), with q' = R_k q (a chain of multiply-adds per output and lane of eight, inputs ascending,
//! the lanes added as [`Lanes::sum`] does) and the group's bf16 means and deviations:
//! ```text
//! w = q' * deviation;  w8 = round(w * (127 / max|w|)), ties to even;  s = max|w| / 127
//! qm = sum q' mean       a chain of multiply-adds in each lane over the quarters (padded with zeros), lanes added last
//! logit = (sum w8 code - 1.5 sum w8) * (0.996 s / sqrt(d)) + qm / sqrt(d)
//! page score = m + ln(sum over its 8 tokens of e^(logit - m)), m the largest
//! ```
//! The integers are exact in any order, and the half-integer in the brackets is exact in f32. Everything is a
//! function of query and group, so results do not depend on how groups are spread.

use super::lanes::Lane;
use super::runtime::{CpuRuntime, rows, vector};
use super::simd::{Kernel, Lanes, MOST_LANES, Simd};
use super::workspace::padded_row_bytes;
use crate::sketch::{GROUP_PAGES, SketchFrame, THRESHOLD};
use crate::{AlgorithmId, View, Weight};
use kv::PAGE_TOKENS;
use kv::geometry::SKETCH_TOKENS;
use kv::selection::Selected;
use std::cell::RefCell;
use std::ops::Range;

/// Fewest and most groups of one task, whole blocks of them: a task begins with frames that nobody has asked for, so
/// tasks are as long as `TASKS_PER_THREAD` allows.
const TASK_GROUPS: (usize, usize) = (32, 128);

/// Tasks for each thread, at least, where there are enough groups.
const TASKS_PER_THREAD: usize = 4;

/// Groups whose queries are quantised side by side, so that chains of dependent operations overlap; frames are asked
/// for one block ahead: they lie a row apart, where no hardware prefetcher looks.
const BLOCK_GROUPS: usize = 8;

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
        let share = groups * heads / (rt.threads.count() * TASKS_PER_THREAD);
        let task_groups = share.clamp(TASK_GROUPS.0, TASK_GROUPS.1).next_multiple_of(BLOCK_GROUPS);
        let tasks = groups.div_ceil(task_groups);
        rt.threads.each(tasks * heads, groups * q_heads * SKETCH_TOKENS * 8, |task| {
            let (head, first) = (task / tasks, task % tasks * task_groups);
            let groups = first..groups.min(first + task_groups);
            SCRATCH.with_borrow_mut(|scratch| rt.isa.run(Task { rt, lane, i, layer, head, groups, scratch }));
        });
    }
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = const { RefCell::new(Scratch::new()) };
}

/// Room for one block.
struct Scratch {
    /// Padded key halves, where quarters need padding: see [`pad_frame`].
    frames: Vec<u16>,
    /// `[groups][heads of a chunk][4][padded row]`
    w8: Vec<i8>,
    /// The same before rounding.
    w: Vec<f32>,
}

impl Scratch {
    const fn new() -> Self {
        Scratch { frames: Vec::new(), w8: Vec::new(), w: Vec::new() }
    }
}

/// Token logits and page scores of `groups`, for the query heads of one KV head.
struct Task<'a> {
    rt: &'a CpuRuntime,
    lane: &'a Lane,
    i: usize,
    layer: usize,
    head: usize,
    groups: Range<usize>,
    scratch: &'a mut Scratch,
}

impl Kernel for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        self.score::<S::Wide>();
    }
}

impl Task<'_> {
    #[inline(always)]
    fn score<L: Lanes>(self) {
        let (rt, group) = (self.rt, self.rt.group());
        let layout = SketchFrame { head_dim: rt.shape.geometry.head_dim };
        let padded = SketchFrame { head_dim: 4 * padded_row_bytes(layout.head_dim) };
        let first_row = self.i * rt.shape.q_heads + self.head * group;
        let Scratch { frames: padded_frames, w8, w } = self.scratch;
        w8.resize(BLOCK_GROUPS * 4 * WIDTH_MOST, 0);
        w.resize(BLOCK_GROUPS * 4 * WIDTH_MOST, 0.0);
        let block_at = |first| block_frames(rt, self.lane, self.layer, self.head, first, &self.groups);
        for frame in block_at(self.groups.start) {
            prefetch_keys::<L>(frame, layout);
        }
        for first in self.groups.clone().step_by(BLOCK_GROUPS) {
            let mut frames = block_at(first);
            let ahead = block_at(first + BLOCK_GROUPS);
            if padded != layout {
                padded_frames.resize(BLOCK_GROUPS * padded.value_codes() / 2, 0);
                for (out, frame) in padded_frames.chunks_exact_mut(padded.value_codes() / 2).zip(frames) {
                    pad_frame(frame, layout, out);
                }
                for (frame, out) in frames.iter_mut().zip(padded_frames.chunks_exact(padded.value_codes() / 2)) {
                    *frame = out;
                }
            }
            let groups = first..self.groups.end.min(first + BLOCK_GROUPS);
            let mut h = 0;
            while h < group {
                let block = Block { rt, row: first_row + h, groups: groups.clone(), frames, padded, layout, ahead };
                h += match group - h {
                    1 => block.score::<L, 1>(w8, w),
                    2 | 3 => block.score::<L, 2>(w8, w),
                    _ => block.score::<L, 4>(w8, w),
                };
            }
        }
    }
}

/// The frames of a block of groups from `first` on; of the last of `groups` for those behind it.
#[inline(always)]
fn block_frames<'a>(
    rt: &'a CpuRuntime,
    lane: &Lane,
    layer: usize,
    head: usize,
    first: usize,
    groups: &Range<usize>,
) -> [&'a [u16]; BLOCK_GROUPS] {
    std::array::from_fn(|n| rt.frame(lane.summary_rows[(first + n).min(groups.end - 1)], layer, head))
}

/// Asks for a frame's key half.
#[inline(always)]
fn prefetch_keys<L: Lanes>(frame: &[u16], layout: SketchFrame) {
    for line in (0..layout.value_codes()).step_by(64) {
        L::prefetch(frame.as_ptr().cast::<u8>().wrapping_add(line));
    }
}

/// Copies a frame's key half into that of a head with padded quarters, the padding zero.
fn pad_frame(frame: &[u16], layout: SketchFrame, out: &mut [u16]) {
    let padded = SketchFrame { head_dim: out.len() / 8 };
    out.fill(0);
    let (quarter, padded_quarter) = (layout.row_bytes(), padded.row_bytes());
    for k in 0..8 {
        out[k * padded_quarter..][..quarter].copy_from_slice(&frame[k * quarter..(k + 1) * quarter]);
    }
    let (codes, out) = (&bytes(frame)[layout.key_codes()..layout.value_codes()], &mut out[padded.key_codes() / 2..]);
    for (row, out) in codes.chunks_exact(quarter).zip(out.chunks_exact_mut(padded_quarter / 2)) {
        for (pair, out) in row.chunks(2).zip(out) {
            *out = u16::from_le_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
        }
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

/// Up to four query heads of a KV head, from row `row` of the workspace on, against a block of groups.
struct Block<'a> {
    rt: &'a CpuRuntime,
    row: usize,
    groups: Range<usize>,
    /// Key halves, laid out as `padded` says.
    frames: [&'a [u16]; BLOCK_GROUPS],
    padded: SketchFrame,
    layout: SketchFrame,
    /// The frames that are read next, laid out as `layout` says.
    ahead: [&'a [u16]; BLOCK_GROUPS],
}

/// What makes a logit of one head's sum over codes, per group: `(sum - shift) * factor + offset`.
#[derive(Clone, Copy)]
struct Scales {
    shift: [f32; BLOCK_GROUPS],
    factor: [f32; BLOCK_GROUPS],
    offset: [f32; BLOCK_GROUPS],
}

impl Block<'_> {
    /// Writes the token logits and page scores of `H` heads; returns `H`.
    #[inline(always)]
    fn score<L: Lanes, const H: usize>(self, w8: &mut [i8], w: &mut [f32]) -> usize {
        let (work, width) = (&self.rt.work, self.padded.head_dim);
        let q = &work.rotated_q.all()[self.row * work.rotated_stride..(self.row + H) * work.rotated_stride];
        let scales = self.quantise::<L, H>(q, w8, w);
        assert!(w8.len() >= BLOCK_GROUPS * H * width);
        for (n, g) in self.groups.clone().enumerate() {
            prefetch_keys::<L>(self.ahead[n], self.layout);
            self.prefetch_near::<L>(n + 1, self.padded.key_codes()..self.padded.value_codes());
            let codes = bytes(self.frames[n])[self.padded.key_codes()..self.padded.value_codes()].as_ptr();
            let mut logits = [std::ptr::null_mut(); H];
            for h in 0..H {
                let first = (self.row + h) * work.max_tokens + g * SKETCH_TOKENS;
                // SAFETY: this task alone writes these logits.
                logits[h] = unsafe { work.token_logits.part(first..first + SKETCH_TOKENS) }.as_mut_ptr();
            }
            for token in (0..SKETCH_TOKENS).step_by(L::LANES) {
                // SAFETY: codes are `[48][width / 4]`, weights `[8][H][width]`, logits `[48]`.
                unsafe {
                    let sums = L::code_sums::<H>(
                        codes.add(token * width / 4),
                        w8.as_ptr().add(n * H * width).cast(),
                        width / 4,
                    );
                    for h in 0..H {
                        let Scales { shift, factor, offset } = &scales[h];
                        let level = L::sub(sums[h], L::splat(shift[n]));
                        let logit = L::add(L::mul(level, L::splat(factor[n])), L::splat(offset[n]));
                        L::store(logits[h].add(token), logit);
                    }
                }
            }
        }
        let pages = self.groups.start * GROUP_PAGES..self.groups.end * GROUP_PAGES;
        for row in self.row..self.row + H {
            let (tokens, at) = (row * work.max_tokens, row * work.max_pages);
            let tokens = tokens + pages.start * PAGE_TOKENS..tokens + pages.end * PAGE_TOKENS;
            // SAFETY: this task alone writes these scores, and it has written these logits.
            unsafe {
                let (logits, scores) =
                    (work.token_logits.slice(tokens), work.page_scores.part(at + pages.start..at + pages.end));
                page_scores::<L>(logits, scores);
            }
        }
        H
    }

    /// Writes `w8` `[groups][H][4][padded row]`.
    #[inline(always)]
    fn quantise<L: Lanes, const H: usize>(&self, q: &[f32], w8: &mut [i8], w: &mut [f32]) -> [Scales; H] {
        let (width, deviations) = (self.padded.head_dim, self.padded.deviations() / 2);
        assert!(width.is_multiple_of(64) && q.len() == H * width && w8.len() >= BLOCK_GROUPS * H * width);
        assert!(w.len() >= BLOCK_GROUPS * H * width);
        assert!(self.frames.iter().all(|frame| frame.len() >= 2 * width) && deviations == width);
        let zero = L::splat(0.0);
        let (mut most, mut dot) = ([[zero; BLOCK_GROUPS]; H], [[zero; BLOCK_GROUPS]; H]);
        let mut inverse = [[0.0; BLOCK_GROUPS]; H];
        let nothing = Scales { shift: [0.0; 8], factor: [0.0; 8], offset: [0.0; 8] };
        let mut scales = [nothing; H];
        let unit = self.scale();
        // SAFETY: `width` means and deviations, `[H][width]` queries, `[8][H][width]` weights, by the assertions.
        unsafe {
            let q = q.as_ptr();
            for n in 0..BLOCK_GROUPS {
                let frame = self.frames[n].as_ptr();
                self.prefetch_near::<L>(n + 1, 0..self.padded.key_codes());
                let (mut group_most, mut group_dot) = ([zero; H], [zero; H]);
                for c in (0..width).step_by(L::LANES) {
                    let (mean, deviation) = (L::load_bf16(frame.add(c)), L::load_bf16(frame.add(deviations + c)));
                    for h in 0..H {
                        let q = L::load(q.add(h * width + c));
                        let product = L::mul(q, deviation);
                        L::store(w.as_mut_ptr().add((n * H + h) * width + c), product);
                        group_most[h] = L::max(group_most[h], L::abs(product));
                        group_dot[h] = L::fma(q, mean, group_dot[h]);
                    }
                }
                for h in 0..H {
                    (most[h][n], dot[h][n]) = (group_most[h], group_dot[h]);
                }
            }
            for h in 0..H {
                let (most, dot) = (L::largests(most[h]), L::totals(dot[h]));
                for n in 0..BLOCK_GROUPS {
                    inverse[h][n] = if most[n] > 1e-30 { 127.0 / most[n] } else { 0.0 };
                    scales[h].factor[n] = THRESHOLD * (most[n] / 127.0) * unit;
                    scales[h].offset[n] = dot[n] * unit;
                }
            }
            let mut sums = [[zero; BLOCK_GROUPS]; H];
            for n in 0..BLOCK_GROUPS {
                for h in 0..H {
                    let (first, inverse) = ((n * H + h) * width, L::splat(inverse[h][n]));
                    let mut sum = zero;
                    for c in (first..first + width).step_by(4 * L::LANES) {
                        let (w, mut scaled) = (w.as_ptr().add(c), [zero; 4]);
                        for k in 0..4 {
                            scaled[k] = L::mul(L::load(w.add(k * L::LANES)), inverse);
                        }
                        sum = L::add(sum, L::store_rounded_i8(w8.as_mut_ptr().add(c), scaled));
                    }
                    sums[h][n] = sum;
                }
            }
            for h in 0..H {
                scales[h].shift = L::totals(sums[h]).map(|sum| 1.5 * sum);
            }
        }
        scales
    }

    /// Asks for some bytes of the block's group `n`, if it has one, to be in L1: of all frames of a block together L1
    /// keeps only some, because they lie whole rows apart, in the same sets.
    #[inline(always)]
    fn prefetch_near<L: Lanes>(&self, n: usize, part: Range<usize>) {
        let frame = self.frames[n.min(BLOCK_GROUPS - 1)].as_ptr().cast::<u8>();
        for line in part.step_by(64) {
            L::prefetch_near(frame.wrapping_add(line));
        }
    }

    fn scale(&self) -> f32 {
        1.0 / (self.layout.head_dim as f32).sqrt()
    }
}

/// Log-sum-exp of every page's eight logits.
#[inline(always)]
fn page_scores<L: Lanes>(logits: &[f32], page_scores: &mut [f32]) {
    assert_eq!(logits.len(), PAGE_TOKENS * page_scores.len());
    for (logits, scores) in logits.chunks(PAGE_TOKENS * L::LANES).zip(page_scores.chunks_mut(L::LANES)) {
        let mut x = [L::splat(0.0); 8];
        for j in 0..8 {
            // Behind the last page, the last vector again: what it gives is not kept.
            let at = (j * L::LANES).min(logits.len() - L::LANES);
            // SAFETY: groups are whole vectors.
            x[j] = unsafe { L::load(logits.as_ptr().add(at)) };
        }
        let most = L::maxes(x);
        let (mut mosts, mut out) = ([0.0; MOST_LANES], [0.0; MOST_LANES]);
        // SAFETY: a vector's elements; the eights of eight vectors are as many.
        unsafe {
            L::store(mosts.as_mut_ptr(), most);
            for j in 0..8 {
                x[j] = L::weight(L::sub(x[j], L::splat_eights(mosts.as_ptr().add(j * L::EIGHTS))));
            }
            L::store(out.as_mut_ptr(), L::add(most, L::ln(L::sums(x))));
        }
        scores.copy_from_slice(&out[..scores.len()]);
    }
}
