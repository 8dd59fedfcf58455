//! Exact attention over page lists.
//!
//! A task is one split of one list: 64 entries of one lane and some KV heads, all query heads of a group together, so
//! that K and V are read once. Splits lie at fixed list positions and join in ascending order (invariant 3); inside a
//! split, blocks of four entries pass logits, softmax and values while they are in L1, the largest logit so far
//! rescaling what came before.

// Loops over constant ranges unroll into registers; iterators over arrays of registers do not always.
#![allow(clippy::needless_range_loop)]

use super::merge::join;
use super::runtime::{CpuRuntime, activations, rows};
use super::scratch::{self, cut};
use super::simd::{Kernel, Lanes, MOST_LANES, Simd};
use super::workspace::SPLIT_PAGES;
use crate::{AlgorithmId, PageSource, Partial, View};
use kv::{PAGE_TOKENS, PageEntry, RowId, geometry};
use std::ops::Range;

/// Tokens of a split, at most.
const SPLIT_TOKENS: usize = SPLIT_PAGES * PAGE_TOKENS;

/// Entries of a block: K and V of 32 tokens are 16 KiB at head size 128.
const BLOCK_PAGES: usize = 4;

/// Logits of a block: a tile may write past its last token.
const BLOCK_LOGITS: usize = BLOCK_PAGES * PAGE_TOKENS + 8;

/// How many entries before its use a page is asked for: enough bytes on their way to cover the latency of memory.
const AHEAD: usize = 8;

/// Frames of a row's neighbouring KV heads that one task reads together, where there are tasks enough: memory is
/// fastest in long stretches.
const STRETCH_BYTES: usize = 8 << 10;

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
    let mut first_splits = vec![0];
    for lane in 0..lanes.len() {
        first_splits.push(first_splits[lane] + splits_of(lane));
    }
    let splits = first_splits[lanes.len()];
    let together = match source {
        PageSource::RowTable if splits >= 2 * rt.threads.count() => STRETCH_BYTES / rt.shape.geometry.page_bytes(),
        _ => 1,
    };
    let together = together.clamp(1, kv_heads);
    let parts = kv_heads.div_ceil(together);
    rt.threads.each(splits * parts, splits * kv_heads * group * SPLIT_TOKENS * d, |task| {
        let (split, part) = (task / parts, task % parts);
        let lane = first_splits.partition_point(|first| *first <= split) - 1;
        let split = split - first_splits[lane];
        let heads = part * together..kv_heads.min((part + 1) * together);
        let list = list(lane, heads.start);
        let entries = split * SPLIT_PAGES..list.len().min((split + 1) * SPLIT_PAGES);
        if entries.start >= entries.end {
            return;
        }
        let q_head = lanes[lane].0 * rt.shape.q_heads + heads.start * group;
        let q_heads = heads.len() * group;
        let q = &queries[q_head * d..(q_head + q_heads) * d];
        // SAFETY: this task alone has these heads' split.
        let place = |i: usize| unsafe { split_place(rt, q_head + i, split) };
        scratch::with(split_scratch(q_heads, d), |scratch| {
            let pages = &Pages::resolve(rt, layer, heads.start, list, entries);
            let head_stride = rt.shape.geometry.frame_elements();
            rt.isa.run(Split { d, group, heads: heads.len(), head_stride, pages, q, scratch, place });
        });
    });
    // Joining a split costs little; it is spread where there are many.
    rt.threads.each(lanes.len() * kv_heads, splits * kv_heads * group * (d + 64), |task| {
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

/// Where an entry's tokens lie.
#[derive(Clone, Copy)]
struct Page {
    /// `[count][d]`
    keys: *const u16,
    /// `[count][d]`
    values: *const u16,
    count: usize,
}

/// The pages of a split, and those of the next one that it asks for when it ends.
struct Pages {
    pages: [Page; SPLIT_PAGES + AHEAD],
    /// Pages of this split.
    own: usize,
    /// Those and the next one's.
    all: usize,
}

impl Pages {
    fn resolve(rt: &CpuRuntime, layer: usize, head: usize, list: List<'_>, entries: Range<usize>) -> Self {
        let d = rt.shape.geometry.head_dim;
        let all = list.len().min(entries.end + AHEAD) - entries.start;
        let none = Page { keys: std::ptr::null(), values: std::ptr::null(), count: 0 };
        let mut pages = [none; SPLIT_PAGES + AHEAD];
        for (page, i) in pages[..all].iter_mut().zip(entries.start..) {
            let entry = list.entry(i);
            let (first, count) = (entry.first(), entry.count());
            assert!(first + count <= PAGE_TOKENS, "an entry's tokens are in its page");
            let (keys, values) = rt.frame(entry.row(), layer, head).split_at(PAGE_TOKENS * d);
            *page = Page { keys: keys[first * d..].as_ptr(), values: values[first * d..].as_ptr(), count };
        }
        Pages { pages, own: entries.len(), all }
    }
}

/// One split of some neighbouring KV heads.
struct Split<'s, P> {
    d: usize,
    /// Query heads of a KV head.
    group: usize,
    /// KV heads.
    heads: usize,
    /// Elements from one KV head's frame to the next one's.
    head_stride: usize,
    /// Of the first KV head.
    pages: &'s Pages,
    /// `[heads * group][d]`
    q: &'s [f32],
    scratch: &'s mut [f32],
    /// Where query head `i` puts its output `[d]` and its log-sum-exp.
    place: P,
}

/// What a split's blocks hand to each other, and their scratch.
struct State<'s> {
    /// Scaled queries; those of heads that pass a block together as `[d / piece][heads together][piece]`, a piece being
    /// two vectors, each as the even ones, then the odd ones: what a K row's loads give, in the order of reading.
    q: &'s mut [f32],
    /// `[heads * group][lanes]`: sums of exponentials so far.
    sums: &'s mut [f32],
    /// `[heads * group]`: largest logits so far.
    largest: &'s mut [f32],
    /// `[4][BLOCK_LOGITS]`: logits of a block, then their exponentials.
    weights: &'s mut [f32],
}

impl<'a, P: Fn(usize) -> &'a mut [f32]> Kernel for Split<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        match self.d.is_multiple_of(2 * S::Wide::LANES) {
            true => self.attend::<S::Wide>(),
            false => self.attend::<S>(),
        }
    }
}

impl<'a, P: Fn(usize) -> &'a mut [f32]> Split<'_, P> {
    /// Attends in vectors two of which divide a head.
    #[inline(always)]
    fn attend<L: Lanes>(mut self) {
        let (d, q_heads) = (self.d, self.heads * self.group);
        let mut rest = std::mem::take(&mut self.scratch);
        let mut state = State {
            q: cut(&mut rest, q_heads * d),
            sums: cut(&mut rest, q_heads * L::LANES),
            largest: cut(&mut rest, q_heads),
            weights: cut(&mut rest, 4 * BLOCK_LOGITS),
        };
        self.arrange_queries(state.q, 2 * L::LANES);
        state.sums.fill(0.0);
        state.largest.fill(f32::NEG_INFINITY);
        for i in 0..q_heads {
            (self.place)(i)[..d].fill(0.0);
        }
        let mut first = 0;
        while first < self.pages.own {
            let block = first..self.pages.own.min(first + BLOCK_PAGES);
            for head in 0..self.heads {
                let mut g = 0;
                while g < self.group {
                    let i = head * self.group + g;
                    // SAFETY: the block is inside the split, and so are this many heads from `i` on.
                    g += unsafe {
                        match (heads_together(self.group - g), L::LANES) {
                            (4, 8) => self.block::<L, 4, 2, 8, 1>(block.clone(), head, i, &mut state),
                            (2, 8) => self.block::<L, 2, 4, 8, 2>(block.clone(), head, i, &mut state),
                            (_, 8) => self.block::<L, 1, 8, 8, 4>(block.clone(), head, i, &mut state),
                            (4, _) => self.block::<L, 4, 4, 16, 2>(block.clone(), head, i, &mut state),
                            (2, _) => self.block::<L, 2, 8, 16, 2>(block.clone(), head, i, &mut state),
                            (_, _) => self.block::<L, 1, 8, 8, 2>(block.clone(), head, i, &mut state),
                        }
                    };
                }
            }
            first = block.end;
        }
        for i in 0..q_heads {
            let sums = &state.sums[i * L::LANES..(i + 1) * L::LANES];
            finish((self.place)(i), d, 2 * L::LANES, state.largest[i], sums.iter().sum());
        }
    }
}

/// Elements of a split's scratch, rounded up to cache lines.
fn split_scratch(q_heads: usize, d: usize) -> usize {
    q_heads * (d + MOST_LANES) + q_heads + 4 * BLOCK_LOGITS + 4 * 16
}

/// How many of the query heads left in a group pass a block together.
#[inline(always)]
fn heads_together(left: usize) -> usize {
    match left {
        4.. => 4,
        2.. => 2,
        _ => 1,
    }
}

/// Divides an output by its sum of weights, puts its elements back in order, and notes the log-sum-exp.
#[inline(always)]
fn finish(place: &mut [f32], d: usize, piece: usize, largest: f32, sum: f32) {
    place[d] = largest + sum.ln();
    let scale = 1.0 / sum;
    for elements in place[..d].chunks_exact_mut(piece) {
        let mut ordered = [0.0; 2 * MOST_LANES];
        for i in 0..piece / 2 {
            (ordered[2 * i], ordered[2 * i + 1]) = (elements[i] * scale, elements[i + piece / 2] * scale);
        }
        elements.copy_from_slice(&ordered[..piece]);
    }
}

impl<'a, P: Fn(usize) -> &'a mut [f32]> Split<'_, P> {
    /// See `State::q`.
    #[inline(always)]
    fn arrange_queries(&self, out: &mut [f32], piece: usize) {
        let (d, scale) = (self.d, 1.0 / (self.d as f32).sqrt());
        let mut i = 0;
        while i < self.heads * self.group {
            let together = heads_together(self.group - i % self.group);
            let (source, out) = (&self.q[i * d..(i + together) * d], &mut out[i * d..(i + together) * d]);
            for h in 0..together {
                for c in 0..d / piece {
                    let source = &source[h * d + c * piece..][..piece];
                    let out = &mut out[(c * together + h) * piece..][..piece];
                    for j in 0..piece / 2 {
                        (out[j], out[j + piece / 2]) = (source[2 * j] * scale, source[2 * j + 1] * scale);
                    }
                }
            }
            i += together;
        }
    }

    /// What is asked for while page `i` is read: the page `by` ahead of it, of this split or the next one.
    #[inline(always)]
    fn ahead(&self, i: usize, by: usize) -> Page {
        self.pages.pages[(i + by).min(self.pages.all - 1)]
    }

    /// A block of one KV head for its `H` query heads from `i` on: `N = H * T` accumulators of `T` tokens at a time for
    /// logits, `C` pieces of the output at a time for values. Returns `H`.
    ///
    /// # Safety
    /// The pages and heads are inside the split.
    #[inline(always)]
    unsafe fn block<L: Lanes, const H: usize, const T: usize, const N: usize, const C: usize>(
        &self,
        pages: Range<usize>,
        head: usize,
        i: usize,
        state: &mut State<'_>,
    ) -> usize {
        let d = self.d;
        // SAFETY: by the caller's promise.
        let tokens = unsafe { self.logits::<L, H, T, N>(pages.clone(), head, &state.q[i * d..], state.weights) };
        let padded = tokens.next_multiple_of(L::LANES);
        let mut before = [0.0; H];
        // All heads' maxima before all heads' exponentials, so that their latencies overlap.
        for h in 0..H {
            let weights = &mut state.weights[h * BLOCK_LOGITS..][..padded];
            weights[tokens..].fill(f32::NEG_INFINITY);
            before[h] = state.largest[i + h];
            state.largest[i + h] = largest_of::<L>(weights, before[h]);
        }
        for h in 0..H {
            let (before, largest) = (before[h], state.largest[i + h]);
            let sums = &mut state.sums[(i + h) * L::LANES..][..L::LANES];
            if before < largest && before > f32::NEG_INFINITY {
                let factor = L::exp(L::splat(before - largest));
                scale::<L>(sums, factor);
                scale::<L>(&mut (self.place)(i + h)[..d], factor);
            }
            exponentials::<L>(&mut state.weights[h * BLOCK_LOGITS..][..padded], largest, sums);
        }
        let mut column = 0;
        while column < d {
            // SAFETY: columns are inside the head; `weights` has the block's tokens.
            column += unsafe {
                match d - column >= 2 * L::LANES * C {
                    true => self.values::<L, H, C>(pages.clone(), head, i, column, state.weights),
                    false => self.values::<L, H, 1>(pages.clone(), head, i, column, state.weights),
                }
            };
        }
        H
    }

    /// Scaled logits of the block, one row of `weights` per query head; returns the number of tokens.
    ///
    /// # Safety
    /// See `block`; `q` has `H` heads.
    #[inline(always)]
    unsafe fn logits<L: Lanes, const H: usize, const T: usize, const N: usize>(
        &self,
        pages: Range<usize>,
        head: usize,
        q: &[f32],
        weights: &mut [f32],
    ) -> usize {
        let (d, piece, zero) = (self.d, 2 * L::LANES, L::splat(0.0));
        let mut token = 0;
        for i in pages {
            let Page { keys, count, .. } = self.pages.pages[i];
            let offset = head * self.head_stride;
            let keys = keys.wrapping_add(offset);
            let ahead = self.ahead(i, AHEAD).keys.wrapping_add(offset);
            let mut t = 0;
            while t < count {
                // Behind the last token, the last token again: what it gives is not kept.
                let k: [*const u16; T] = std::array::from_fn(|j| keys.wrapping_add((t + j).min(count - 1) * d));
                let mut sums = [zero; N];
                for at in (0..d).step_by(piece) {
                    for line in 0..T * piece / 32 {
                        L::prefetch(ahead.wrapping_add(t * d + at * T + line * 32).cast());
                    }
                    // SAFETY: a piece of each token and head.
                    unsafe {
                        // What is fewer stays in registers: the tokens' halves, or the heads' queries.
                        if T <= H {
                            let mut halves = [(zero, zero); T];
                            for j in 0..T {
                                halves[j] = L::load_bf16_even_odd(k[j].add(at));
                            }
                            for h in 0..H {
                                let q = q.as_ptr().add(at * H + h * piece);
                                let (even, odd) = (L::load(q), L::load(q.add(L::LANES)));
                                for j in 0..T {
                                    let sum = L::fma(halves[j].0, even, sums[h * T + j]);
                                    sums[h * T + j] = L::fma(halves[j].1, odd, sum);
                                }
                            }
                        } else {
                            let mut queries = [(zero, zero); H];
                            for h in 0..H {
                                let q = q.as_ptr().add(at * H + h * piece);
                                queries[h] = (L::load(q), L::load(q.add(L::LANES)));
                            }
                            for j in 0..T {
                                let (even, odd) = L::load_bf16_even_odd(k[j].add(at));
                                for h in 0..H {
                                    let sum = L::fma(even, queries[h].0, sums[h * T + j]);
                                    sums[h * T + j] = L::fma(odd, queries[h].1, sum);
                                }
                            }
                        }
                    }
                }
                let logits = L::totals(sums);
                for h in 0..H {
                    // Places behind the page's last token are written by the next page, or by the caller.
                    weights[h * BLOCK_LOGITS + token + t..][..T].copy_from_slice(&logits[h * T..(h + 1) * T]);
                }
                t += T;
            }
            token += count;
        }
        token
    }

    /// Adds the block's weighted values to `C` pieces of the outputs from `column` on; returns their columns.
    ///
    /// # Safety
    /// See `block`; the columns are inside the head; `weights` has the block's tokens.
    #[inline(always)]
    unsafe fn values<L: Lanes, const H: usize, const C: usize>(
        &self,
        pages: Range<usize>,
        head: usize,
        i: usize,
        column: usize,
        weights: &[f32],
    ) -> usize {
        let (d, lanes, piece, zero) = (self.d, L::LANES, 2 * L::LANES, L::splat(0.0));
        let mut sums = [[[zero; 2]; C]; H];
        let places: [*mut f32; H] = std::array::from_fn(|h| (self.place)(i + h)[column..].as_mut_ptr());
        // SAFETY: the columns are inside the head's output, and so are pieces of each token's values.
        unsafe {
            for h in 0..H {
                for c in 0..C {
                    sums[h][c] = [L::load(places[h].add(piece * c)), L::load(places[h].add(piece * c + lanes))];
                }
            }
            let mut token = 0;
            for i in pages {
                let Page { values, count, .. } = self.pages.pages[i];
                let values = values.add(head * self.head_stride + column);
                let ahead = self.ahead(i, AHEAD).values.wrapping_add(head * self.head_stride);
                for t in 0..count {
                    let asked = PAGE_TOKENS * column + t * piece * C;
                    for line in 0..(piece * C).div_ceil(32) {
                        L::prefetch(ahead.wrapping_add(asked + line * 32).cast());
                    }
                    let mut w = [zero; H];
                    for h in 0..H {
                        w[h] = L::splat(*weights.as_ptr().add(h * BLOCK_LOGITS + token + t));
                    }
                    for c in 0..C {
                        let (even, odd) = L::load_bf16_even_odd(values.add(t * d + piece * c));
                        for h in 0..H {
                            sums[h][c][0] = L::fma(w[h], even, sums[h][c][0]);
                            sums[h][c][1] = L::fma(w[h], odd, sums[h][c][1]);
                        }
                    }
                }
                token += count;
            }
            for h in 0..H {
                for c in 0..C {
                    L::store(places[h].add(piece * c), sums[h][c][0]);
                    L::store(places[h].add(piece * c + lanes), sums[h][c][1]);
                }
            }
        }
        piece * C
    }
}

/// The largest of `before` and the logits, whose number is a multiple of the lanes.
#[inline(always)]
fn largest_of<L: Lanes>(logits: &[f32], before: f32) -> f32 {
    let mut largest = L::splat(before);
    for vector in logits.chunks_exact(L::LANES) {
        // SAFETY: a vector's elements.
        largest = L::max(largest, unsafe { L::load(vector.as_ptr()) });
    }
    L::largest(largest)
}

/// `x *= factor`; the length is a multiple of the lanes.
#[inline(always)]
fn scale<L: Lanes>(x: &mut [f32], factor: L::F) {
    for vector in x.chunks_exact_mut(L::LANES) {
        // SAFETY: a vector's elements.
        unsafe { L::store(vector.as_mut_ptr(), L::mul(L::load(vector.as_ptr()), factor)) };
    }
}

/// Logits to `e^(logit - largest)`, which are also added to a vector of sums.
#[inline(always)]
fn exponentials<L: Lanes>(weights: &mut [f32], largest: f32, sums: &mut [f32]) {
    // SAFETY: `sums` has a vector's elements, and so has each piece.
    unsafe {
        let mut sum = L::load(sums.as_ptr());
        for vector in weights.chunks_exact_mut(L::LANES) {
            let e = L::exp(L::sub(L::load(vector.as_ptr()), L::splat(largest)));
            L::store(vector.as_mut_ptr(), e);
            sum = L::add(sum, e);
        }
        L::store(sums.as_mut_ptr(), sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::{Isa, threads::Threads};
    use crate::reference::attend::attend as reference;
    use crate::{Backend, LaneStart, Rope, Runtime, RuntimeShape, Sampling, StepInput, StepKey};
    use half::bf16;
    use kv::{Geometry, LaneId, Selection};
    use std::sync::Arc;

    /// Of values, the widest vectors take 64 columns, then 32.
    const D: usize = 96;
    const ROWS: usize = 90;

    fn runtime(isa: Isa, q_heads: usize) -> CpuRuntime {
        let shape = RuntimeShape {
            geometry: Geometry { layers: 1, kv_heads: 1, head_dim: D },
            q_heads,
            vocab: 1,
            pool_rows: ROWS,
            dram_rows: 0,
            eviction: kv::bucketed_lru::Eviction::Score,
            max_lanes: 1,
            max_tokens: ROWS * PAGE_TOKENS,
            rope: Rope { inv_freq: Vec::new(), attention_factor: 1.0 },
        };
        CpuRuntime::new(&shape, Arc::new(Threads::new(2)), isa, None).expect("memory")
    }

    /// Entries that begin and end inside pages; `topk` makes only such as end there.
    #[test]
    fn lists_of_partial_pages() {
        let available = Isa::ALL.into_iter().filter(|isa| isa.is_available());
        // Two heads together and one; four together.
        for (isa, q_heads) in available.flat_map(|isa| [(isa, 3), (isa, 4)]) {
            let rt = runtime(isa, q_heads);
            let value = |i: usize| bf16::from_f32((i as f32 * 0.754_877_7).fract() - 0.5);
            // SAFETY: no op is running.
            for (i, element) in unsafe { rt.pool.part(0..rt.pool.len()) }.iter_mut().enumerate() {
                *element = value(i).to_bits();
            }
            let entry = |i: usize| {
                let first = i % PAGE_TOKENS;
                PageEntry::new(RowId((i * 7 % ROWS) as u32), first, 1 + i * 5 % (PAGE_TOKENS - first))
            };
            for entries in [1, 3, 63, 64, 65, 83] {
                check(&rt, &(0..entries).map(entry).collect::<Vec<_>>());
            }
        }
    }

    fn check(rt: &CpuRuntime, entries: &[PageEntry]) {
        let wide = |bits: &u16| bf16::from_bits(*bits).to_f32();
        let (mut k, mut v) = (Vec::new(), Vec::new());
        for (i, entry) in entries.iter().enumerate() {
            // SAFETY: no op is running.
            unsafe { rt.work.page_list.part(i..i + 1) }.fill(entry.0);
            let (keys, values) = rt.frame(entry.row(), 0, 0).split_at(PAGE_TOKENS * D);
            let tokens = entry.first() * D..(entry.first() + entry.count()) * D;
            k.extend(keys[tokens.clone()].iter().map(wide));
            v.extend(values[tokens].iter().map(wide));
        }
        // SAFETY: no op is running.
        unsafe { rt.work.page_list_len.part(0..1) }.fill(entries.len() as u32);
        start(rt);
        let backend = crate::cpu::CpuBackend::new(Default::default()).expect("available");
        let buffer = |cols| backend.buffer("a test", 1, cols).expect("memory");
        let heads = rt.shape.q_heads;
        let (q, out) = (buffer(heads * D), Partial { output: buffer(heads * D), lse: buffer(heads) });
        let queries: Vec<f32> = (0..heads * D).map(|i| (i as f32 * 0.569_84).fract() * 6.0 - 3.0).collect();
        // SAFETY: no op is running.
        unsafe { activations(&q).part(0..heads * D) }.copy_from_slice(&queries);
        let key = StepKey { bucket: 1, algorithms: Default::default(), measure_mass: false, retrieves: false };
        let input = StepInput { active: vec![LaneId(0)], ..StepInput::default() };
        let ticket = rt.launch(key, &input, &mut || {
            attend(rt, AlgorithmId(0), 0, PageSource::PageList, (&q).into(), &out);
        });
        rt.collect(ticket).expect("the device works");
        let (output, lse) = reference::<f64>(&queries, &k, &v, D);
        let got = activations(&out.output).all().iter().chain(activations(&out.lse).all());
        for (got, want) in got.zip(output.iter().chain(&lse)) {
            // A dozen roundings of numbers below 8.
            assert!((f64::from(*got) - want).abs() < 6e-6, "{} entries: {got} for {want}", entries.len());
        }
    }

    fn start(rt: &CpuRuntime) {
        let selection = Selection {
            index_unit_tokens: 8,
            sink_tokens: 8,
            window_tokens: 8,
            budget: 1.0,
            floor_tokens: 0,
            min_context: 0,
        };
        rt.start_lane(&LaneStart {
            lane: LaneId(0),
            algorithm: AlgorithmId(0),
            selection,
            len: 1,
            first: crate::FirstInput::Prompt { token: 0, outputs: 0 },
            kv_rows: vec![RowId(0)],
            summary_rows: Vec::new(),
            cache_rows: Vec::new(),
            sampling: Sampling::default(),
            prompt: Vec::new(),
            mask: None,
        });
    }
}
