//! Ops that work element by element or row by row.

use super::runtime::{CpuRuntime, matrix, rows, rows_mut, vector};
use super::simd::{Kernel, Simd};
use super::weight::PANEL;
use crate::{Batch, TokenSource, View, Weight};
use kv::TokenId;

/// See [`crate::Runtime`].
pub(super) fn embed(rt: &CpuRuntime, tokens: TokenSource<'_>, table: &Weight, out: View<'_>) {
    let lanes = rt.lanes();
    let count = match tokens {
        TokenSource::Lanes => lanes.active.len(),
        TokenSource::Given(tokens) => tokens.len(),
    };
    let token_of = |i: usize| match tokens {
        TokenSource::Lanes => lanes.lane(lanes.active[i]).token,
        TokenSource::Given(tokens) => tokens[i],
    };
    let table = matrix(table);
    assert_eq!(out.buffer.cols(), table.in_features, "embed: the output's width is the table's");
    // A strided read costs about as much as eight multiply-adds.
    rt.threads.each(count, count * table.in_features * 8, |i| {
        // SAFETY: this task alone has row `i`.
        let row = unsafe { rows_mut(out.buffer.from_row(out.row + i), 1) };
        embed_row(table, token_of(i), row);
    });
}

/// One row of the packed table: a place in every 16 elements of the token's panel.
fn embed_row(table: &super::weight::Matrix, token: TokenId, row: &mut [f32]) {
    let token = token as usize;
    assert!(token < table.out_features, "token {token} of a vocabulary of {}", table.out_features);
    let (panel, j) = (token / PANEL, token % PANEL);
    let place = if j < 8 { 2 * j } else { 2 * (j - 8) + 1 };
    let len = table.in_features * PANEL;
    let elements = table.panels.all()[panel * len..(panel + 1) * len].iter().skip(place).step_by(PANEL);
    for (x, bits) in row.iter_mut().zip(elements) {
        *x = f32::from_bits(u32::from(*bits) << 16);
    }
}

/// See [`crate::Runtime`].
pub(super) fn add_norm(
    rt: &CpuRuntime,
    batch: Batch,
    x: View<'_>,
    delta: Option<View<'_>>,
    norm: &Weight,
    eps: f32,
    out: View<'_>,
) {
    let n = rt.rows_of(batch);
    let cols = x.buffer.cols();
    let norm = vector(norm);
    let widths = [out.buffer.cols(), delta.map_or(cols, |d| d.buffer.cols()), norm.len()];
    assert_eq!(widths, [cols; 3], "add_norm: widths of out, delta and norm are x's");
    let delta = delta.map(|delta| rows(delta, n));
    rt.threads.each(n, n * cols * 4, |i| {
        // SAFETY: this task alone has row `i` of each.
        let (x, out) =
            unsafe { (rows_mut(x.buffer.from_row(x.row + i), 1), rows_mut(out.buffer.from_row(out.row + i), 1)) };
        if let Some(delta) = delta {
            for (x, d) in x.iter_mut().zip(&delta[i * cols..]) {
                *x += d;
            }
        }
        rt.isa.run(RmsNorm { x, norm, eps, out });
    });
}

/// `out = x / sqrt(mean(x^2) + eps) * norm`, all of one length.
pub(super) struct RmsNorm<'a> {
    pub(super) x: &'a [f32],
    pub(super) norm: &'a [f32],
    pub(super) eps: f32,
    pub(super) out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let scale = inverse_rms::<S>(self.x, self.eps);
        for ((out, x), w) in self.out.iter_mut().zip(self.x).zip(self.norm) {
            *out = x * scale * w;
        }
    }
}

/// `1 / sqrt(mean(x^2) + eps)`: two vectors of sums over every other eight, then the rest one by one.
#[inline(always)]
pub(super) fn inverse_rms<S: Simd>(x: &[f32], eps: f32) -> f32 {
    let mut sums = [S::splat(0.0); 2];
    let sixteens = x.chunks_exact(16);
    let rest = sixteens.remainder();
    for chunk in sixteens {
        // SAFETY: sixteen elements.
        let (a, b) = unsafe { (S::load(chunk.as_ptr()), S::load(chunk.as_ptr().add(8))) };
        sums = [S::fma(a, a, sums[0]), S::fma(b, b, sums[1])];
    }
    let square_sum = rest.iter().fold(S::sum(S::add(sums[0], sums[1])), |sum, x| sum + x * x);
    1.0 / (square_sum / x.len() as f32 + eps).sqrt()
}

/// See [`crate::Runtime`].
pub(super) fn silu_mul(rt: &CpuRuntime, batch: Batch, gate_up: View<'_>, out: View<'_>) {
    let n = rt.rows_of(batch);
    let cols = out.buffer.cols();
    assert_eq!(gate_up.buffer.cols(), 2 * cols, "silu_mul: gate and up are as wide as the output");
    let input = rows(gate_up, n);
    // An exponential and a division cost about as much as 16 multiply-adds.
    rt.threads.each(n, n * cols * 16, |i| {
        // SAFETY: this task alone has row `i`.
        let out = unsafe { rows_mut(out.buffer.from_row(out.row + i), 1) };
        let (gate, up) = input[2 * i * cols..2 * (i + 1) * cols].split_at(cols);
        rt.isa.run(SiluMul { gate, up, out });
    });
}

/// `out = gate / (1 + e^-gate) * up`.
struct SiluMul<'a> {
    gate: &'a [f32],
    up: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for SiluMul<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let whole = self.out.len() / 8 * 8;
        for i in (0..whole).step_by(8) {
            // SAFETY: eight elements from `i` on are in each slice.
            unsafe {
                let y = silu_mul_eight::<S>(S::load(self.gate.as_ptr().add(i)), S::load(self.up.as_ptr().add(i)));
                S::store(self.out.as_mut_ptr().add(i), y);
            }
        }
        // The rest passes the same eight lanes, so that no element depends on its place.
        let rest = self.out.len() - whole;
        let (mut gate, mut up, mut out) = ([0.0; 8], [0.0; 8], [0.0; 8]);
        gate[..rest].copy_from_slice(&self.gate[whole..]);
        up[..rest].copy_from_slice(&self.up[whole..]);
        // SAFETY: eight elements each.
        unsafe { S::store(out.as_mut_ptr(), silu_mul_eight::<S>(S::load(gate.as_ptr()), S::load(up.as_ptr()))) };
        self.out[whole..].copy_from_slice(&out[..rest]);
    }
}

#[inline(always)]
fn silu_mul_eight<S: Simd>(gate: S::F, up: S::F) -> S::F {
    let one = S::splat(1.0);
    let exp = S::exp(S::sub(S::splat(0.0), gate));
    S::mul(S::div(gate, S::add(one, exp)), up)
}
