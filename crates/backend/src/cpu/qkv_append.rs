//! Head norms, rotary embedding, K and V to their place.

use super::elementwise::inverse_rms;
use super::runtime::{CpuRuntime, rows, rows_mut, vector};
use super::scratch;
use super::simd::{Kernel, Simd};
use super::staging::Staging;
use crate::{Batch, HeadNorms, KvTarget, View};
use kv::PAGE_TOKENS;

/// Tokens of one task.
const TASK_TOKENS: usize = 8;

/// See [`crate::Runtime`].
pub(super) fn qkv_append(
    rt: &CpuRuntime,
    layer: usize,
    batch: Batch,
    qkv: View<'_>,
    norms: Option<HeadNorms<'_>>,
    target: KvTarget<'_>,
    q: View<'_>,
) {
    let n = rt.rows_of(batch);
    let (q_heads, kv_heads, d) = (rt.shape.q_heads, rt.shape.geometry.kv_heads, rt.shape.geometry.head_dim);
    let (q_cols, cols) = (q_heads * d, (q_heads + 2 * kv_heads) * d);
    assert_eq!([qkv.buffer.cols(), q.buffer.cols()], [cols, q_cols], "qkv_append: widths of qkv and q");
    assert_eq!(2 * rt.shape.rope.inv_freq.len(), d, "qkv_append: an inverse frequency per pair of a head");
    let input = rows(qkv, n);
    let lanes = rt.lanes();
    let q_norm = norms.map(|norms| (vector(norms.q), norms.eps));
    let k_norm = norms.map(|norms| (vector(norms.k), norms.eps));
    let append = |i: usize| {
        let position = match target {
            KvTarget::Lanes => lanes.lane(lanes.active[i]).len - 1,
            KvTarget::Staging { first, .. } => first + i,
        };
        let row = &input[i * cols..(i + 1) * cols];
        // SAFETY: this task alone has row `i`.
        let q_out = unsafe { rows_mut(q.buffer.from_row(q.row + i), 1) };
        scratch::with(d, |angles| {
            rt.rope.fill(position, angles);
            let angles = &*angles;
            for head in 0..q_heads {
                let part = head * d..(head + 1) * d;
                rt.isa.run(Head { x: &row[part.clone()], norm: q_norm, angles, out: &mut q_out[part] });
            }
            for head in 0..kv_heads {
                let at = q_cols + head * d;
                let (k, v) = (&row[at..at + d], &row[at + kv_heads * d..][..d]);
                // SAFETY: this task alone has the token of this position, and a lane's last row is its own.
                let (k_out, v_out) = unsafe {
                    match target {
                        KvTarget::Staging { staging, .. } => {
                            let staging = Staging::of(staging, kv_heads);
                            let token = position..position + 1;
                            (staging.write(head, 0, token.clone()), staging.write(head, 1, token))
                        }
                        KvTarget::Lanes => {
                            let row = lanes.lane(lanes.active[i]).kv_rows[position / PAGE_TOKENS];
                            let (k, v) = rt.frame_mut(row, layer, head).split_at_mut(PAGE_TOKENS * d);
                            let at = position % PAGE_TOKENS * d;
                            (&mut k[at..at + d], &mut v[at..at + d])
                        }
                    }
                };
                rt.isa.run(KeyValue { k, v, norm: k_norm, angles, k_out, v_out });
            }
        });
    };
    let tasks = n.div_ceil(TASK_TOKENS);
    rt.threads.each(tasks, n * cols * 4, |task| {
        (task * TASK_TOKENS..n.min((task + 1) * TASK_TOKENS)).for_each(&append);
    });
}

/// Norms and ropes one head: element `i` turns with element `i + d / 2`.
struct Head<'a> {
    /// `[d]`.
    x: &'a [f32],
    norm: Option<(&'a [f32], f32)>,
    /// Cosines `[d / 2]`, then sines.
    angles: &'a [f32],
    /// `[d]`.
    out: &'a mut [f32],
}

impl Kernel for Head<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let half = self.x.len() / 2;
        match self.norm {
            None => self.out.copy_from_slice(self.x),
            Some((norm, eps)) => {
                let scale = inverse_rms::<S>(self.x, eps);
                for ((out, x), w) in self.out.iter_mut().zip(self.x).zip(norm) {
                    *out = x * scale * w;
                }
            }
        }
        let ((a, b), (cos, sin)) = (self.out.split_at_mut(half), self.angles.split_at(half));
        for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

/// Norms and ropes a key, and rounds it and its value to bf16.
struct KeyValue<'a> {
    k: &'a [f32],
    v: &'a [f32],
    norm: Option<(&'a [f32], f32)>,
    angles: &'a [f32],
    k_out: &'a mut [u16],
    v_out: &'a mut [u16],
}

impl Kernel for KeyValue<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd>(self) {
        let mut roped = [0.0; HEAD_DIM_MAX];
        let roped = &mut roped[..self.k.len()];
        Head { x: self.k, norm: self.norm, angles: self.angles, out: roped }.run::<S>();
        round(roped, self.k_out);
        round(self.v, self.v_out);
    }
}

/// Largest head of `CpuRuntime::new`.
const HEAD_DIM_MAX: usize = 256;

/// To bf16, nearest, ties to even; a NaN stays one.
#[inline(always)]
fn round(x: &[f32], out: &mut [u16]) {
    for (out, x) in out.iter_mut().zip(x) {
        let bits = x.to_bits();
        let nearest = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        let rounded = if x.is_nan() { bits >> 16 | 0x40 } else { nearest };
        *out = rounded as u16;
    }
}
