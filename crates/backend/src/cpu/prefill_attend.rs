//! Causal attention over staged tokens, flash style.
//!
//! A task is one KV head and some tokens of the unit: the rows are those tokens' queries of the whole group, so that a
//! block of keys and values, expanded to f32 once, serves all of them. Keys are blocked at absolute multiples of 128;
//! each row sees the same blocks in the same order whatever unit and task it is in, and what is masked adds nothing to
//! it, not even a rounding (invariant 3): masked weights are 0, and a block without a visible key keeps the maximum,
//! so its factor is `e^0 = 1`.

use super::runtime::{CpuRuntime, activations, rows};
use super::scratch::{self, cut};
use super::simd::{Kernel, Simd};
use super::staging::Staging;
use super::tile::{TILE_ROWS, tile};
use super::weight::PANEL;
use crate::{Buffer, View};

/// Keys of a block.
const BLOCK_KEYS: usize = 128;

/// Rows of a task, at most: expanding a block costs as much as about ten rows' products with it.
const TASK_ROWS: usize = 192;

/// Tasks per thread that a unit is cut into where it has the tokens, so that threads end together.
const TASKS_PER_THREAD: usize = 4;

/// Fewest rows of a task that is cut so.
const TASK_ROWS_LEAST: usize = 96;

/// See [`crate::Runtime`].
pub(super) fn prefill_attend(rt: &CpuRuntime, staging: &Buffer, first: usize, n: usize, q: View<'_>, out: View<'_>) {
    let (kv_heads, group, d) = (rt.shape.geometry.kv_heads, rt.group(), rt.shape.geometry.head_dim);
    let staging = Staging::of(staging, kv_heads);
    assert_eq!(out.buffer.cols(), rt.shape.q_heads * d, "prefill_attend: a row is all heads");
    let (queries, output) = (rows(q, n), activations(out.buffer));
    let share = (n * group * kv_heads / (rt.threads.count() * TASKS_PER_THREAD)).clamp(TASK_ROWS_LEAST, TASK_ROWS);
    let task_tokens = (share / group).max(1);
    let tiles = n.div_ceil(task_tokens);
    let cost = n * (first + n / 2 + 1) * rt.shape.q_heads * d * 2;
    rt.threads.each(tiles * kv_heads, cost, |task| {
        // The last tokens see the most keys: they go first, so that no thread ends with the longest task.
        let (tile, head) = (tiles - 1 - task / kv_heads, task % kv_heads);
        let tokens = tile * task_tokens..n.min((tile + 1) * task_tokens);
        let last = first + tokens.end;
        let (k, v) = (staging.read(head, 0, 0..last), staging.read(head, 1, 0..last));
        let write = |token: usize, g: usize| {
            let at = ((out.row + token) * rt.shape.q_heads + head * group + g) * d;
            // SAFETY: this task alone has this head of this row, and asks for it once.
            unsafe { output.part(at..at + d) }
        };
        let rows = (tokens.end - tokens.start) * group;
        scratch::with(Tile::scratch(rows, d), |scratch| {
            let query = |r: usize| {
                let at = (tokens.start + r / group) * rt.shape.q_heads + head * group + r % group;
                &queries[at * d..(at + 1) * d]
            };
            let tile = Tile { d, rows, group, position: first + tokens.start, k, v, scratch };
            rt.isa.run(Task { tile, query, write: |r: usize| write(tokens.start + r / group, r % group) });
        });
    });
}

/// The queries of some tokens and one group, row `r` being head `r % group` of token `r / group`.
struct Tile<'a> {
    d: usize,
    rows: usize,
    group: usize,
    /// Of the first token.
    position: usize,
    /// `[keys][d]` up to the last token's own.
    k: &'a [u16],
    v: &'a [u16],
    scratch: &'a mut [f32],
}

struct Task<'a, Q, W> {
    tile: Tile<'a>,
    /// Row `r`'s query, `[d]`.
    query: Q,
    /// Row `r`'s output, `[d]`.
    write: W,
}

/// The scratch of a task.
struct State<'a> {
    /// `[rows][d]`, scaled.
    q: &'a mut [f32],
    /// `[rows][d]`: weighted sums of values so far.
    sums: &'a mut [f32],
    /// `[rows][128]`: logits of a block, then their exponentials.
    weights: &'a mut [f32],
    /// `[128 / 16][d][16]`: a block's keys.
    keys: &'a mut [f32],
    /// `[d / 16][128][16]`: its values.
    values: &'a mut [f32],
    /// `[rows]`: largest logit so far.
    largest: &'a mut [f32],
    /// `[rows]`: sum of exponentials so far.
    total: &'a mut [f32],
    /// `[rows]`: what a block's new largest logit makes of the sums so far.
    factor: &'a mut [f32],
}

impl Tile<'_> {
    fn scratch(rows: usize, d: usize) -> usize {
        rows * (2 * d + BLOCK_KEYS) + 2 * BLOCK_KEYS * d + 3 * rows.next_multiple_of(16)
    }

    /// Keys of the block from `start` that row `r` sees.
    #[inline(always)]
    fn visible(&self, r: usize, start: usize) -> usize {
        (self.position + r / self.group + 1).saturating_sub(start).min(BLOCK_KEYS)
    }

    /// Keys of the block that a register tile of rows `r..r + rows` computes: whole panels of what its last row sees.
    #[inline(always)]
    fn computed(&self, r: usize, rows: usize, start: usize) -> usize {
        self.visible(r + rows - 1, start).next_multiple_of(PANEL)
    }
}

impl<'q, 'w, Q: Fn(usize) -> &'q [f32], W: Fn(usize) -> &'w mut [f32]> Kernel for Task<'_, Q, W> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self) {
        let (rows, d) = (self.tile.rows, self.tile.d);
        let mut rest = std::mem::take(&mut self.tile.scratch);
        let mut state = State {
            q: cut(&mut rest, rows * d),
            sums: cut(&mut rest, rows * d),
            weights: cut(&mut rest, rows * BLOCK_KEYS),
            keys: cut(&mut rest, BLOCK_KEYS * d),
            values: cut(&mut rest, BLOCK_KEYS * d),
            largest: cut(&mut rest, rows),
            total: cut(&mut rest, rows),
            factor: cut(&mut rest, rows),
        };
        let scale = 1.0 / (d as f32).sqrt();
        for (r, q) in state.q.chunks_exact_mut(d).enumerate() {
            for (q, x) in q.iter_mut().zip((self.query)(r)) {
                *q = x * scale;
            }
        }
        state.sums.fill(0.0);
        state.total.fill(0.0);
        state.largest.fill(f32::NEG_INFINITY);
        let keys = self.tile.k.len() / d;
        for start in (0..keys).step_by(BLOCK_KEYS) {
            let count = BLOCK_KEYS.min(keys - start);
            expand_keys::<S>(&self.tile.k[start * d..(start + count) * d], d, state.keys);
            expand_values::<S>(&self.tile.v[start * d..(start + count) * d], d, state.values);
            score::<S>(&self.tile, start, &mut state);
            weigh::<S>(&self.tile, start, &mut state);
            add_values::<S>(&self.tile, start, &mut state);
        }
        for (r, sums) in state.sums.chunks_exact(d).enumerate() {
            for (out, x) in (self.write)(r).iter_mut().zip(sums) {
                // A sum that underflowed may be -0 or +0, depending on how many zeros followed: + 0 makes it +0.
                *out = x / state.total[r] + 0.0;
            }
        }
    }
}

/// Keys `[count][d]` to panels of 16 keys `[d][16]`, zeros behind the last.
#[inline(always)]
fn expand_keys<S: Simd>(source: &[u16], d: usize, keys: &mut [f32]) {
    let count = source.len() / d;
    for (p, panel) in keys.chunks_exact_mut(PANEL * d).enumerate().take(count.div_ceil(PANEL)) {
        for half in 0..2 {
            let first = p * PANEL + half * 8;
            for at in (0..d).step_by(8) {
                // SAFETY: eight elements of each key that there is; eight rows of the panel.
                unsafe {
                    let mut rows = [S::splat(0.0); 8];
                    for (j, row) in rows.iter_mut().enumerate().take(count.saturating_sub(first)) {
                        *row = S::load_bf16(source.as_ptr().add((first + j) * d + at));
                    }
                    for (i, column) in S::transpose(rows).into_iter().enumerate() {
                        S::store(panel.as_mut_ptr().add((at + i) * PANEL + half * 8), column);
                    }
                }
            }
        }
    }
}

/// Values `[count][d]` to panels of 16 columns `[128][16]`, zeros behind the last.
#[inline(always)]
fn expand_values<S: Simd>(source: &[u16], d: usize, values: &mut [f32]) {
    let count = source.len() / d;
    for (p, panel) in values.chunks_exact_mut(BLOCK_KEYS * PANEL).enumerate() {
        for i in 0..count {
            // SAFETY: sixteen elements each.
            unsafe {
                let source = source.as_ptr().add(i * d + p * PANEL);
                let target = panel.as_mut_ptr().add(i * PANEL);
                S::store(target, S::load_bf16(source));
                S::store(target.add(8), S::load_bf16(source.add(8)));
            }
        }
        panel[count * PANEL..].fill(0.0);
    }
}

/// Calls `$each::<S, R>($r, ...)` for every register tile of `$rows` rows.
macro_rules! each_tile {
    ($rows:expr, $each:ident($($arg:expr),*)) => {{
        let mut r = 0;
        while r < $rows {
            // SAFETY: rows `r..r + R` are inside.
            r += unsafe {
                match $rows - r {
                    TILE_ROWS.. => $each::<S, 6>(r, $($arg),*),
                    5 => $each::<S, 5>(r, $($arg),*),
                    4 => $each::<S, 4>(r, $($arg),*),
                    3 => $each::<S, 3>(r, $($arg),*),
                    2 => $each::<S, 2>(r, $($arg),*),
                    _ => $each::<S, 1>(r, $($arg),*),
                }
            };
        }
    }};
}

/// Logits of the block from `start`.
#[inline(always)]
fn score<S: Simd>(t: &Tile<'_>, start: usize, state: &mut State<'_>) {
    for panel in 0..BLOCK_KEYS / PANEL {
        each_tile!(t.rows, score_tile(t, start, panel, state));
    }
}

/// # Safety
/// Rows `r..r + R` are inside.
#[inline(always)]
unsafe fn score_tile<S: Simd, const R: usize>(
    r: usize,
    t: &Tile<'_>,
    start: usize,
    panel: usize,
    state: &mut State<'_>,
) -> usize {
    if panel * PANEL < t.computed(r, R, start) {
        let mut acc = [[S::splat(0.0); 2]; R];
        let (q, keys) = (&state.q[r * t.d..(r + R) * t.d], &state.keys[panel * t.d * PANEL..][..t.d * PANEL]);
        let weights = &mut state.weights[r * BLOCK_KEYS + panel * PANEL..];
        // SAFETY: `q` is `[R][d]`, `keys` `[d][16]`; `weights` has `R` rows.
        unsafe {
            tile::<S, R>(t.d, q.as_ptr(), t.d, keys.as_ptr(), &mut acc);
            for (i, row) in acc.into_iter().enumerate() {
                S::store(weights.as_mut_ptr().add(i * BLOCK_KEYS), row[0]);
                S::store(weights.as_mut_ptr().add(i * BLOCK_KEYS + 8), row[1]);
            }
        }
    }
    R
}

/// Logits to exponentials under the new largest logit; totals and factors.
#[inline(always)]
fn weigh<S: Simd>(t: &Tile<'_>, start: usize, state: &mut State<'_>) {
    let mut first = 0;
    while first < t.rows {
        let rows = TILE_ROWS.min(t.rows - first);
        let computed = t.computed(first, rows, start);
        for r in first..first + rows {
            if computed > 0 {
                let weights = &mut state.weights[r * BLOCK_KEYS..][..computed];
                weights[t.visible(r, start)..].fill(f32::NEG_INFINITY);
                (state.largest[r], state.factor[r], state.total[r]) =
                    weigh_row::<S>(weights, state.largest[r], state.total[r]);
            }
        }
        first += rows;
    }
}

/// One row: returns the largest logit so far, the factor of what came before, and the new total.
#[inline(always)]
fn weigh_row<S: Simd>(weights: &mut [f32], before: f32, total: f32) -> (f32, f32, f32) {
    let mut largest = S::splat(before);
    for eight in weights.chunks_exact(8) {
        // SAFETY: eight elements.
        largest = S::max(largest, unsafe { S::load(eight.as_ptr()) });
    }
    let largest = S::largest(largest);
    // Two sums, over every other eight; zeros behind the last visible key change neither.
    let mut sums = [S::splat(0.0); 2];
    for sixteen in weights.chunks_exact_mut(16) {
        // SAFETY: sixteen elements.
        unsafe {
            let low = S::exp(S::sub(S::load(sixteen.as_ptr()), S::splat(largest)));
            let high = S::exp(S::sub(S::load(sixteen.as_ptr().add(8)), S::splat(largest)));
            S::store(sixteen.as_mut_ptr(), low);
            S::store(sixteen.as_mut_ptr().add(8), high);
            sums = [S::add(sums[0], low), S::add(sums[1], high)];
        }
    }
    let factor = S::largest(S::exp(S::splat(before - largest)));
    (largest, factor, total * factor + S::sum(S::add(sums[0], sums[1])))
}

/// Adds the block's weighted values to the sums.
#[inline(always)]
fn add_values<S: Simd>(t: &Tile<'_>, start: usize, state: &mut State<'_>) {
    for panel in 0..t.d / PANEL {
        each_tile!(t.rows, add_values_tile(t, start, panel, state));
    }
}

/// # Safety
/// Rows `r..r + R` are inside.
#[inline(always)]
unsafe fn add_values_tile<S: Simd, const R: usize>(
    r: usize,
    t: &Tile<'_>,
    start: usize,
    panel: usize,
    state: &mut State<'_>,
) -> usize {
    let computed = t.computed(r, R, start);
    if computed > 0 {
        let sums = &mut state.sums[r * t.d + panel * PANEL..];
        let weights = &state.weights[r * BLOCK_KEYS..(r + R) * BLOCK_KEYS];
        let values = &state.values[panel * BLOCK_KEYS * PANEL..][..BLOCK_KEYS * PANEL];
        // SAFETY: `sums` has `R` rows, `weights` is `[R][128]`, `values` `[128][16]`, and `computed` at most 128.
        unsafe {
            let mut acc = [[S::splat(0.0); 2]; R];
            for (i, acc) in acc.iter_mut().enumerate() {
                let (factor, row) = (S::splat(state.factor[r + i]), sums.as_ptr().add(i * t.d));
                *acc = [S::mul(factor, S::load(row)), S::mul(factor, S::load(row.add(8)))];
            }
            tile::<S, R>(computed, weights.as_ptr(), BLOCK_KEYS, values.as_ptr(), &mut acc);
            for (i, row) in acc.into_iter().enumerate() {
                S::store(sums.as_mut_ptr().add(i * t.d), row[0]);
                S::store(sums.as_mut_ptr().add(i * t.d + 8), row[1]);
            }
        }
    }
    R
}
