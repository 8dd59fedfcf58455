//! Exact attention over page lists.
//!
//! A task is one split of one list: 64 entries of one lane and KV head, all query heads of its group together, so
//! that K and V are read once. Splits lie at fixed list positions and join in ascending order (invariant 3).

// Loops over constant ranges unroll into registers; iterators over arrays of registers do not always.
#![allow(clippy::needless_range_loop)]

use super::merge::join;
use super::runtime::{CpuRuntime, activations, rows};
use super::scratch::{self, cut};
use super::simd::{Kernel, Simd};
use super::workspace::SPLIT_PAGES;
use crate::{AlgorithmId, PageSource, Partial, View};
use kv::{PAGE_TOKENS, PageEntry, RowId, geometry};
use std::ops::Range;

/// Tokens of a split, at most.
const SPLIT_TOKENS: usize = SPLIT_PAGES * PAGE_TOKENS;

/// Entries whose values are read together for each part of the output: their 8 KiB (head size 128) stay in L1.
const VALUE_PAGES: usize = 4;

/// How many entries before its use a page is asked for: at 1 KiB to 2 KiB each, enough bytes in flight to cover the
/// latency of memory.
const AHEAD: usize = 4;

/// What one (lane, KV head) reads.
#[derive(Clone, Copy)]
enum List<'a> {
    /// Every page of a row table; the last holds the rest of `len` tokens.
    Table { kv_rows: &'a [RowId], len: usize },
    /// Page entries.
    Entries(&'a [u32]),
}

impl List<'_> {
    fn len(&self) -> usize {
        match self {
            List::Table { len, .. } => geometry::pages(*len),
            List::Entries(entries) => entries.len(),
        }
    }

    fn entry(&self, i: usize) -> PageEntry {
        match self {
            List::Table { kv_rows, len } => PageEntry::new(kv_rows[i], 0, PAGE_TOKENS.min(len - i * PAGE_TOKENS)),
            List::Entries(entries) => PageEntry(entries[i]),
        }
    }
}

/// See [`crate::Runtime`].
pub(super) fn attend(
    rt: &CpuRuntime,
    algorithm: AlgorithmId,
    layer: usize,
    source: PageSource,
    q: View<'_>,
    out: &Partial,
) {
    let (kv_heads, group, d) = (rt.shape.geometry.kv_heads, rt.group(), rt.shape.geometry.head_dim);
    let lanes = rt.lanes();
    let queries = rows(q, lanes.active.len());
    let lanes = lanes.of(algorithm);
    let list = |lane: usize, head: usize| {
        let (row, lane) = lanes[lane];
        match source {
            PageSource::RowTable => List::Table { kv_rows: &lane.kv_rows, len: lane.len },
            PageSource::PageList => List::Entries(page_list(rt, row * kv_heads + head)),
        }
    };
    // Splits of a lane: as many as its longest list has, so that a task's number gives its place.
    let splits_of = |lane| (0..kv_heads).map(|h| list(lane, h).len()).max().unwrap_or(0).div_ceil(SPLIT_PAGES);
    let mut first_tasks = vec![0];
    for lane in 0..lanes.len() {
        first_tasks.push(first_tasks[lane] + splits_of(lane) * kv_heads);
    }
    let tasks = first_tasks[lanes.len()];
    rt.threads.each(tasks, tasks * group * SPLIT_TOKENS * d, |task| {
        let lane = first_tasks.partition_point(|first| *first <= task) - 1;
        let (split, head) = ((task - first_tasks[lane]) / kv_heads, (task - first_tasks[lane]) % kv_heads);
        let list = list(lane, head);
        let entries = split * SPLIT_PAGES..list.len().min((split + 1) * SPLIT_PAGES);
        if entries.start >= entries.end {
            return;
        }
        let q_head = lanes[lane].0 * rt.shape.q_heads + head * group;
        let q = &queries[q_head * d..(q_head + group) * d];
        // SAFETY: this task alone has these heads' split.
        let place = |g: usize| unsafe { split_place(rt, q_head + g, split) };
        scratch::with((d + SPLIT_TOKENS + PAGE_TOKENS) * group + 16 * 3, |scratch| {
            rt.isa.run(Split { rt, layer, head, list, entries, q, scratch, place });
        });
    });
    // Joining a split costs little; it is spread where there are many.
    rt.threads.each(lanes.len() * kv_heads, tasks * group * (d + 64), |task| {
        let (lane, head) = (task / kv_heads, task % kv_heads);
        let splits = list(lane, head).len().div_ceil(SPLIT_PAGES);
        for g in 0..group {
            let q_head = lanes[lane].0 * rt.shape.q_heads + head * group + g;
            // SAFETY: this task alone has this query head, and the splits' writers are done.
            unsafe {
                let output = activations(&out.output).part(q_head * d..(q_head + 1) * d);
                let lse = &mut activations(&out.lse).part(q_head..q_head + 1)[0];
                *lse = f32::NEG_INFINITY;
                for split in 0..splits {
                    let part = split_place(rt, q_head, split);
                    join(output, lse, &part[..d], part[d]);
                }
            }
        }
    });
}

/// The page list of a (lane, KV head).
fn page_list(rt: &CpuRuntime, at: usize) -> &[u32] {
    let len = rt.work.page_list_len.all()[at] as usize;
    &rt.work.page_list.all()[at * rt.work.max_pages..][..len]
}

/// A query head's split: output `[d]`, log-sum-exp, and one spare.
///
/// # Safety
/// Nobody else reads or writes it meanwhile.
#[allow(clippy::mut_from_ref)]
unsafe fn split_place(rt: &CpuRuntime, q_head: usize, split: usize) -> &mut [f32] {
    let len = rt.shape.geometry.head_dim + 2;
    let at = (q_head * rt.work.max_splits + split) * len;
    // SAFETY: by the caller's promise.
    unsafe { rt.work.splits.part(at..at + len) }
}

/// One split: logits of every token, their exponentials, and the weighted sum of values.
struct Split<'a, 's, P> {
    rt: &'a CpuRuntime,
    layer: usize,
    head: usize,
    list: List<'a>,
    entries: Range<usize>,
    /// `[group][d]`.
    q: &'a [f32],
    scratch: &'s mut [f32],
    /// Where head `g` of the group puts its output `[d]` and its log-sum-exp.
    place: P,
}

impl<'a, P: Fn(usize) -> &'a mut [f32]> Kernel for Split<'a, '_, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self) {
        let d = self.rt.shape.geometry.head_dim;
        let group = self.q.len() / d;
        let mut rest = std::mem::take(&mut self.scratch);
        let q = cut(&mut rest, group * d);
        let weights = cut(&mut rest, group * (SPLIT_TOKENS + PAGE_TOKENS));
        split_even_odd(self.q, 1.0 / (d as f32).sqrt(), q);
        let mut g = 0;
        while g < group {
            // SAFETY: `q` is `[group][d]` and `weights` `[group][SPLIT_TOKENS + 8]`.
            g += unsafe {
                match group - g {
                    8.. => self.heads::<S, 8, 1, 1>(g, &q[g * d..], weights),
                    4.. => self.heads::<S, 4, 2, 1>(g, &q[g * d..], weights),
                    2.. => self.heads::<S, 2, 4, 2>(g, &q[g * d..], weights),
                    _ => self.heads::<S, 1, 8, 2>(g, &q[g * d..], weights),
                }
            };
        }
    }
}

/// Scales queries and puts each sixteen as the even ones, then the odd ones: what a K row's load gives.
#[inline(always)]
fn split_even_odd(q: &[f32], scale: f32, out: &mut [f32]) {
    for (q, out) in q.chunks_exact(16).zip(out.chunks_exact_mut(16)) {
        for i in 0..8 {
            (out[i], out[i + 8]) = (q[2 * i] * scale, q[2 * i + 1] * scale);
        }
    }
}

impl<'a, P: Fn(usize) -> &'a mut [f32]> Split<'a, '_, P> {
    /// The pages' frames in order, each with the first token and the count.
    #[inline(always)]
    fn page(&self, i: usize) -> (&'a [u16], usize, usize) {
        let entry = self.list.entry(i);
        (self.rt.frame(entry.row(), self.layer, self.head), entry.first(), entry.count())
    }

    /// Asks for the keys (`half` 0) or values (1) of entry `i`; behind the last key come the first values.
    #[inline(always)]
    fn prefetch<S: Simd>(&self, mut i: usize, mut half: usize) {
        if half == 0 && i >= self.entries.end {
            (i, half) = (i - self.entries.end + self.entries.start, 1);
        }
        if i < self.entries.end {
            let elements = PAGE_TOKENS * self.rt.shape.geometry.head_dim;
            let first = self.page(i).0[half * elements..].as_ptr();
            for line in (0..elements).step_by(32) {
                S::prefetch(first.wrapping_add(line).cast());
            }
        }
    }

    /// `H` heads from `g` on; `H * T` = 8 accumulators of `T` tokens at a time for logits, `C` sixteens of the output
    /// at a time for values. Returns `H`.
    ///
    /// # Safety
    /// `q` has `H` heads; `weights` has `H` rows of `SPLIT_TOKENS + PAGE_TOKENS`.
    #[inline(always)]
    unsafe fn heads<S: Simd, const H: usize, const T: usize, const C: usize>(
        &self,
        g: usize,
        q: &[f32],
        weights: &mut [f32],
    ) -> usize {
        const STRIDE: usize = SPLIT_TOKENS + PAGE_TOKENS;
        let d = self.rt.shape.geometry.head_dim;
        // SAFETY: by the caller's promise.
        let tokens = unsafe { self.logits::<S, H, T>(q, weights) };
        for h in 0..H {
            let weights = &mut weights[h * STRIDE..][..tokens.next_multiple_of(8)];
            weights[tokens..].fill(f32::NEG_INFINITY);
            let (largest, sum) = exponentials::<S>(weights);
            let place = (self.place)(g + h);
            place[..d].fill(0.0);
            place[d] = largest + sum.ln();
            place[d + 1] = sum;
        }
        let mut token = 0;
        let mut i = self.entries.start;
        while i < self.entries.end {
            let pages = i..self.entries.end.min(i + VALUE_PAGES);
            let mut column = 0;
            while column < d {
                // SAFETY: columns are inside the head, tokens inside the weights.
                column += unsafe {
                    match d - column >= 16 * C {
                        true => self.values::<S, H, C>(g, pages.clone(), column, &weights[token..]),
                        false => self.values::<S, H, 1>(g, pages.clone(), column, &weights[token..]),
                    }
                };
            }
            token += pages.clone().map(|i| self.list.entry(i).count()).sum::<usize>();
            i = pages.end;
        }
        for h in 0..H {
            let place = (self.place)(g + h);
            let scale = 1.0 / place[d + 1];
            for sixteen in place[..d].chunks_exact_mut(16) {
                let halves: [f32; 16] = std::array::from_fn(|i| sixteen[i] * scale);
                for i in 0..8 {
                    (sixteen[2 * i], sixteen[2 * i + 1]) = (halves[i], halves[i + 8]);
                }
            }
        }
        H
    }

    /// Scaled logits of every token of the split, one row of `weights` per head; returns the number of tokens.
    ///
    /// # Safety
    /// See `heads`.
    #[inline(always)]
    unsafe fn logits<S: Simd, const H: usize, const T: usize>(&self, q: &[f32], weights: &mut [f32]) -> usize {
        const STRIDE: usize = SPLIT_TOKENS + PAGE_TOKENS;
        let d = self.rt.shape.geometry.head_dim;
        let mut token = 0;
        for i in self.entries.clone() {
            let (frame, first, count) = self.page(i);
            self.prefetch::<S>(i + AHEAD, 0);
            for t in (0..count).step_by(T) {
                let place = |j: usize| (first + count.min(t + j + 1) - 1) * d;
                let k: [*const u16; T] = std::array::from_fn(|j| frame[place(j)..].as_ptr());
                let zero = S::splat(0.0);
                let mut sums = [S::splat(0.0); 8];
                for at in (0..d).step_by(16) {
                    // SAFETY: sixteen elements of each token and head.
                    unsafe {
                        let mut halves = [(zero, zero); T];
                        for j in 0..T {
                            halves[j] = S::load_bf16_even_odd(k[j].add(at));
                        }
                        for h in 0..H {
                            let even = S::load(q.as_ptr().add(h * d + at));
                            let odd = S::load(q.as_ptr().add(h * d + at + 8));
                            for j in 0..T {
                                let sum = S::fma(halves[j].0, even, sums[h * T + j]);
                                sums[h * T + j] = S::fma(halves[j].1, odd, sum);
                            }
                        }
                    }
                }
                let mut logits = [0.0; 8];
                // SAFETY: eight elements.
                unsafe { S::store(logits.as_mut_ptr(), S::sums(sums)) };
                for h in 0..H {
                    // Places behind the page's last token are written by the next page, or by the caller.
                    weights[h * STRIDE + token + t..][..T].copy_from_slice(&logits[h * T..(h + 1) * T]);
                }
            }
            token += count;
        }
        token
    }

    /// Adds the pages' weighted values to columns `column..column + 16 C` of every head's output; returns `16 C`.
    ///
    /// # Safety
    /// The columns are inside the head; `weights` starts at the first page's first token.
    #[inline(always)]
    unsafe fn values<S: Simd, const H: usize, const C: usize>(
        &self,
        g: usize,
        pages: Range<usize>,
        column: usize,
        weights: &[f32],
    ) -> usize {
        const STRIDE: usize = SPLIT_TOKENS + PAGE_TOKENS;
        let d = self.rt.shape.geometry.head_dim;
        let zero = S::splat(0.0);
        let mut sums = [[[zero; 2]; C]; H];
        let places: [*mut f32; H] = std::array::from_fn(|h| (self.place)(g + h)[column..].as_mut_ptr());
        // SAFETY: the columns are inside the head's output, and so are sixteens of each token's values.
        unsafe {
            for h in 0..H {
                for c in 0..C {
                    sums[h][c] = [S::load(places[h].add(16 * c)), S::load(places[h].add(16 * c + 8))];
                }
            }
            let mut token = 0;
            for i in pages {
                if column == 0 {
                    self.prefetch::<S>(i + AHEAD, 1);
                }
                let (frame, first, count) = self.page(i);
                let values = frame[(PAGE_TOKENS + first) * d + column..].as_ptr();
                for t in 0..count {
                    let mut v = [(zero, zero); C];
                    for c in 0..C {
                        v[c] = S::load_bf16_even_odd(values.add(t * d + 16 * c));
                    }
                    for h in 0..H {
                        let weight = S::splat(*weights.as_ptr().add(h * STRIDE + token + t));
                        for c in 0..C {
                            sums[h][c][0] = S::fma(weight, v[c].0, sums[h][c][0]);
                            sums[h][c][1] = S::fma(weight, v[c].1, sums[h][c][1]);
                        }
                    }
                }
                token += count;
            }
            for h in 0..H {
                for c in 0..C {
                    S::store(places[h].add(16 * c), sums[h][c][0]);
                    S::store(places[h].add(16 * c + 8), sums[h][c][1]);
                }
            }
        }
        16 * C
    }
}

/// Logits to `e^(logit - largest)`; returns the largest and the sum. The length is a multiple of eight.
#[inline(always)]
fn exponentials<S: Simd>(weights: &mut [f32]) -> (f32, f32) {
    let mut largest = S::splat(f32::NEG_INFINITY);
    for eight in weights.chunks_exact(8) {
        // SAFETY: eight elements.
        largest = S::max(largest, unsafe { S::load(eight.as_ptr()) });
    }
    let largest = S::largest(largest);
    let mut sum = S::splat(0.0);
    for eight in weights.chunks_exact_mut(8) {
        // SAFETY: eight elements.
        unsafe {
            let e = S::exp(S::sub(S::load(eight.as_ptr()), S::splat(largest)));
            S::store(eight.as_mut_ptr(), e);
            sum = S::add(sum, e);
        }
    }
    (largest, S::sum(sum))
}
