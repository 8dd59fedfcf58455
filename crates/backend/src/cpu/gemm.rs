//! Matrix products.
//!
//! Every output element is one chain of multiply-adds, inputs ascending from 0, and the bias added last: the same
//! whatever the number of rows, the threads and the tile. Few rows read the bf16 panels directly and are bound by
//! their bytes; many rows expand each panel to f32, 256 inputs at a time, and save and reload their chains between.

// Loops over constant ranges unroll into registers; iterators over arrays of registers do not always.
#![allow(clippy::needless_range_loop)]

use super::array::Array;
use super::runtime::{CpuRuntime, activations, matrix, rows};
use super::scratch;
use super::simd::{Kernel, Simd};
use super::threads::Threads;
use super::tile::{TILE_ROWS, even_part, tile};
use super::weight::{Matrix, PANEL};
use crate::fuse::{Fused, fused_bias};
use crate::{BackendError, Batch, View, Weight, WeightPart};
use half::bf16;

/// Inputs of one block: a panel's 256 x 16 f32 are 16 KiB, half of L1.
const BLOCK_INPUTS: usize = 256;

/// Rows of one block: 96 x 256 f32 are 96 KiB of L2.
const BLOCK_ROWS: usize = 96;

/// Panels of one task of a product of many rows: they share the block of rows that the task copies.
const BLOCK_PANELS: usize = 16;

/// Panels side by side at one row: eight chains hide the latency.
const STRIP_PANELS: usize = 4;

/// How far ahead a strip of few panels asks for its weights (behind a panel lies the next one): the prefetcher of the
/// hardware alone gives one stream 12 GB/s, four streams what the memory has.
const PREFETCH_ELEMENTS: usize = 2_048;

/// See [`crate::Runtime`].
pub(super) fn gemm(rt: &CpuRuntime, batch: Batch, x: View<'_>, weight: &Weight, out: View<'_>) {
    let n = rt.rows_of(batch);
    let matrix = matrix(weight);
    assert_eq!(x.buffer.cols(), matrix.in_features, "gemm: the input's width is the weight's");
    assert_eq!(out.buffer.cols(), matrix.out_features, "gemm: the output's width is the weight's");
    let output = activations(out.buffer);
    let at = out.row * matrix.out_features..(out.row + n) * matrix.out_features;
    // SAFETY: tasks write disjoint columns or rows of these rows.
    let output = unsafe { output.part(at) };
    let product = Product { x: rows(x, n), matrix, out: Output(output.as_mut_ptr()), rows: n };
    let panels = matrix.out_features.div_ceil(PANEL);
    let cost = n * matrix.out_features * matrix.in_features;
    if n <= TILE_ROWS {
        let strips = panels.div_ceil(STRIP_PANELS);
        rt.threads.each(strips, cost, |i| {
            let last = panels.min((i + 1) * STRIP_PANELS);
            rt.isa.run(Strip { product: &product, panels: i * STRIP_PANELS..last });
        });
    } else {
        let (row_blocks, panel_blocks) = (n.div_ceil(BLOCK_ROWS), panels.div_ceil(BLOCK_PANELS));
        rt.threads.each(row_blocks * panel_blocks, cost, |i| {
            let (block, panel) = (even_part(n, row_blocks, i % row_blocks), i / row_blocks * BLOCK_PANELS);
            let panels = panel..panels.min(panel + BLOCK_PANELS);
            scratch::with(BLOCK_INPUTS * (PANEL + block.1), |scratch| {
                rt.isa.run(Block { product: &product, first: block.0, rows: block.1, panels, scratch });
            });
        });
    }
}

/// Where tasks write: each its own elements.
struct Output(*mut f32);

// SAFETY: see the type.
unsafe impl Sync for Output {}

struct Product<'a> {
    /// `[rows, in]`
    x: &'a [f32],
    matrix: &'a Matrix,
    /// `[rows, out]`
    out: Output,
    rows: usize,
}

impl Product<'_> {
    /// Adds the bias and stores 16 columns (or those there are) of one row.
    ///
    /// # Safety
    /// This task alone has these elements.
    #[inline(always)]
    unsafe fn finish<S: Simd>(&self, row: usize, panel: usize, mut sums: [S::F; 2]) {
        let (n, column) = (self.matrix.out_features, panel * PANEL);
        if let Some(bias) = &self.matrix.bias {
            let bias = &bias.all()[column..column + PANEL];
            // SAFETY: sixteen elements.
            let (low, high) = unsafe { (S::load(bias.as_ptr()), S::load(bias.as_ptr().add(8))) };
            sums = [S::add(sums[0], low), S::add(sums[1], high)];
        }
        // SAFETY: the row is inside; its columns are this task's.
        unsafe { store::<S>(self.out.0.add(row * n + column), n - column, sums) }
    }
}

/// Stores sixteen elements, or `room` where that is less.
///
/// # Safety
/// `p` has room for them.
#[inline(always)]
unsafe fn store<S: Simd>(p: *mut f32, room: usize, v: [S::F; 2]) {
    // SAFETY: by the caller's promise; the copy is as long as there is room.
    unsafe {
        if room >= PANEL {
            S::store(p, v[0]);
            S::store(p.add(8), v[1]);
        } else {
            let mut whole = [0.0; PANEL];
            S::store(whole.as_mut_ptr(), v[0]);
            S::store(whole.as_mut_ptr().add(8), v[1]);
            std::ptr::copy_nonoverlapping(whole.as_ptr(), p, room);
        }
    }
}

/// What `store` stored; zeros where there is no room.
///
/// # Safety
/// `p` has as many elements.
#[inline(always)]
unsafe fn load<S: Simd>(p: *const f32, room: usize) -> [S::F; 2] {
    // SAFETY: by the caller's promise; the copy is as long as there is room.
    unsafe {
        if room >= PANEL {
            return [S::load(p), S::load(p.add(8))];
        }
        let mut whole = [0.0; PANEL];
        std::ptr::copy_nonoverlapping(p, whole.as_mut_ptr(), room);
        [S::load(whole.as_ptr()), S::load(whole.as_ptr().add(8))]
    }
}

/// At most 6 rows against some panels, straight from bf16.
struct Strip<'a> {
    product: &'a Product<'a>,
    panels: std::ops::Range<usize>,
}

impl Kernel for Strip<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let (p, mut panel) = (self.product, self.panels.start);
        while panel < self.panels.end {
            let left = self.panels.end - panel;
            // SAFETY: `panel..panel + strip` are this task's, and the product has that many rows.
            panel += unsafe {
                match p.rows {
                    1 if left >= 4 => strip::<S, 1, 4>(p, panel),
                    1 if left >= 2 => strip::<S, 1, 2>(p, panel),
                    1 => strip::<S, 1, 1>(p, panel),
                    2 if left >= 2 => strip::<S, 2, 2>(p, panel),
                    2 => strip::<S, 2, 1>(p, panel),
                    3 if left >= 2 => strip::<S, 3, 2>(p, panel),
                    3 => strip::<S, 3, 1>(p, panel),
                    4 => strip::<S, 4, 1>(p, panel),
                    5 => strip::<S, 5, 1>(p, panel),
                    _ => strip::<S, 6, 1>(p, panel),
                }
            };
        }
    }
}

/// `R` rows against `P` panels; returns `P`.
///
/// # Safety
/// The product has `R` rows; the panels are in its matrix and this task's alone.
#[inline(always)]
unsafe fn strip<S: Simd, const R: usize, const P: usize>(product: &Product<'_>, panel: usize) -> usize {
    let k = product.matrix.in_features;
    let x = product.x.as_ptr();
    let w: [*const u16; P] = std::array::from_fn(|p| product.matrix.panels.all()[(panel + p) * k * PANEL..].as_ptr());
    let mut sums = [[[S::splat(0.0); 2]; R]; P];
    for i in 0..k {
        for p in 0..P {
            if P < STRIP_PANELS {
                S::prefetch(w[p].wrapping_add(i * PANEL + PREFETCH_ELEMENTS).cast());
            }
            // SAFETY: input `i` of the panel and of each row.
            unsafe {
                let (low, high) = S::load_bf16_even_odd(w[p].add(i * PANEL));
                for r in 0..R {
                    let x = S::splat(*x.add(r * k + i));
                    sums[p][r] = [S::fma(x, low, sums[p][r][0]), S::fma(x, high, sums[p][r][1])];
                }
            }
        }
    }
    for p in 0..P {
        for r in 0..R {
            // SAFETY: by the caller's promise.
            unsafe { product.finish::<S>(r, panel + p, sums[p][r]) };
        }
    }
    P
}

/// A block of many rows against some panels.
struct Block<'a> {
    product: &'a Product<'a>,
    first: usize,
    rows: usize,
    panels: std::ops::Range<usize>,
    scratch: &'a mut [f32],
}

impl Kernel for Block<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(mut self) {
        let (wide, x) = std::mem::take(&mut self.scratch).split_at_mut(BLOCK_INPUTS * PANEL);
        let k = self.product.matrix.in_features;
        let mut at = 0;
        while at < k {
            let inputs = BLOCK_INPUTS.min(k - at);
            // Contiguous rows: at a stride of a power of two they would fall into few sets of L1.
            for r in 0..self.rows {
                let source = &self.product.x[(self.first + r) * k + at..][..inputs];
                x[r * inputs..(r + 1) * inputs].copy_from_slice(source);
            }
            for panel in self.panels.clone() {
                let source = &self.product.matrix.panels.all()[(panel * k + at) * PANEL..][..inputs * PANEL];
                expand::<S>(source, wide);
                self.tiles::<S>(at, inputs, panel, x, wide);
            }
            at += inputs;
        }
    }
}

/// Sixteen bf16 of each input to f32, in order of the outputs.
#[inline(always)]
fn expand<S: Simd>(source: &[u16], wide: &mut [f32]) {
    for (source, wide) in source.chunks_exact(PANEL).zip(wide.chunks_exact_mut(PANEL)) {
        // SAFETY: sixteen elements each.
        unsafe {
            let (low, high) = S::load_bf16_even_odd(source.as_ptr());
            S::store(wide.as_mut_ptr(), low);
            S::store(wide.as_mut_ptr().add(8), high);
        }
    }
}

impl Block<'_> {
    #[inline(always)]
    fn tiles<S: Simd>(&self, at: usize, inputs: usize, panel: usize, x: &[f32], wide: &[f32]) {
        let tiles = self.rows.div_ceil(TILE_ROWS);
        for i in 0..tiles {
            let (row, rows) = even_part(self.rows, tiles, i);
            let x = &x[row * inputs..(row + rows) * inputs];
            match rows {
                6 => self.tile::<S, 6>(at, inputs, panel, row, x, wide),
                5 => self.tile::<S, 5>(at, inputs, panel, row, x, wide),
                4 => self.tile::<S, 4>(at, inputs, panel, row, x, wide),
                3 => self.tile::<S, 3>(at, inputs, panel, row, x, wide),
                2 => self.tile::<S, 2>(at, inputs, panel, row, x, wide),
                _ => self.tile::<S, 1>(at, inputs, panel, row, x, wide),
            }
        }
    }

    #[inline(always)]
    #[allow(clippy::too_many_arguments)]
    fn tile<S: Simd, const R: usize>(
        &self,
        at: usize,
        inputs: usize,
        panel: usize,
        row: usize,
        x: &[f32],
        wide: &[f32],
    ) {
        let (n, column) = (self.product.matrix.out_features, panel * PANEL);
        let out = |r: usize| (self.first + row + r) * n + column;
        let mut sums = [[S::splat(0.0); 2]; R];
        // SAFETY: `x` is `[R][inputs]`, `wide` `[inputs][16]`, and these outputs are this task's.
        unsafe {
            if at > 0 {
                for r in 0..R {
                    sums[r] = load::<S>(self.product.out.0.add(out(r)), n - column);
                }
            }
            tile::<S, R>(inputs, x.as_ptr(), inputs, wide.as_ptr(), &mut sums);
            for r in 0..R {
                match at + inputs == self.product.matrix.in_features {
                    true => self.product.finish::<S>(self.first + row + r, panel, sums[r]),
                    false => store::<S>(self.product.out.0.add(out(r)), n - column, sums[r]),
                }
            }
        }
    }
}

/// Fuses matrices one below the other and packs them.
pub(super) fn pack(threads: &Threads, parts: &[WeightPart<'_>]) -> Result<Weight, BackendError> {
    let Fused { shapes, outputs, inputs } = Fused::of(parts)?;
    let panels = outputs.div_ceil(PANEL);
    let packed = Array::zeros("a weight", panels * inputs * PANEL)?;
    let mut first = 0;
    for (part, shape) in parts.iter().zip(&shapes) {
        let rows = part.weight.data.to_bf16();
        pack_rows(threads, &packed, inputs, first, &rows);
        first += shape[0];
    }
    let bias = fused_bias(parts, &shapes).map(|mut bias| {
        bias.resize(panels * PANEL, 0.0);
        Array::of("a bias", &bias)
    });
    let bias = bias.transpose()?;
    let matrix = Matrix { panels: packed, bias, out_features: outputs, in_features: inputs };
    Ok(Weight::new(std::sync::Arc::new(matrix), [outputs, inputs]))
}

/// Writes the matrix `rows` (`[out, inputs]`) as outputs `first..` of `packed`.
fn pack_rows(threads: &Threads, packed: &Array<u16>, inputs: usize, first: usize, rows: &[bf16]) {
    let outputs = rows.len() / inputs;
    let (first_panel, last_panel) = (first / PANEL, (first + outputs).div_ceil(PANEL));
    threads.each(last_panel - first_panel, rows.len(), |i| {
        let panel = first_panel + i;
        let at = panel * inputs * PANEL;
        // SAFETY: this task alone has this panel.
        let packed = unsafe { packed.part(at..at + inputs * PANEL) };
        for j in 0..PANEL {
            let Some(row) = (panel * PANEL + j).checked_sub(first).filter(|row| *row < outputs) else { continue };
            let place = if j < 8 { 2 * j } else { 2 * (j - 8) + 1 };
            let targets = packed.iter_mut().skip(place).step_by(PANEL);
            for (target, x) in targets.zip(&rows[row * inputs..]) {
                *target = x.to_bits();
            }
        }
    });
}
