//! How much of dense attention the exact tokens hold: a measurement.

use crate::attend::{ROWS, THREADS, check, grid};
use crate::kernels::{Launch, arg};
use crate::runtime::{CudaRuntime, partial, view};
use backend::{AlgorithmId, Batch, Partial, View};

/// A block's rings of pages, of keys alone.
const RINGS: usize = 48 << 10;

/// See [`backend::Runtime`].
pub(crate) fn attention_mass(rt: &CudaRuntime, algorithm: AlgorithmId, layer: usize, q: View<'_>, exact: &Partial) {
    check(rt, algorithm, layer, Some(q), exact);
    let kernel = format!("attention_mass_{}", rt.shape.geometry.head_dim);
    let how = Launch { kernel: &kernel, grid: grid(rt, ROWS as usize), threads: THREADS, shared: RINGS };
    let (algorithm, layer) = (i32::from(algorithm.0), layer as i32);
    rt.run(how, &[arg(&rt.argument), arg(&algorithm), arg(&layer), arg(&view(q))]);
    let threads = rt.shape.q_heads.next_multiple_of(32);
    let shared = threads * size_of::<f64>();
    let how = Launch { kernel: "attention_mass_add", grid: [rt.rows(Batch::Lanes), 1, 1], threads, shared };
    rt.run(how, &[arg(&rt.argument), arg(&algorithm), arg(&partial(exact))]);
}
