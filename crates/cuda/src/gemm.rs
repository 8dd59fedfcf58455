//! Matrix products: few rows and outputs by a kernel of our own, all others through cuBLASLt.

use crate::abi::Pointer;
use crate::cublas::{Product, WORKSPACE_BYTES};
use crate::device::Gpu;
use crate::kernels::{Launch, arg};
use crate::memory::{Array, Budget};
use crate::runtime::{CudaRuntime, view};
use backend::fuse::{Fused, fused_bias};
use backend::{BackendError, Batch, View, Weight, WeightPart};
use std::sync::Arc;

/// Most rows of our own kernel.
const FEW_ROWS: usize = 8;

/// Most outputs of our own kernel: on an H200 it beat cuBLAS at 4,096 outputs (both widths of input at one row, the
/// narrow one at eight) and lost at 6,144 and more; in between nothing was measured.
const FEW_OUTPUTS: usize = 5120;

/// Elements that weight rows are padded to.
const INPUT_GRANULE: usize = 64;

/// Rows that weights are padded to.
const OUTPUT_GRANULE: usize = 16;

/// Bytes for bf16 copies of inputs that are f32, or narrower than a vector.
const COPY_BYTES: usize = 32 << 20;

/// A weight `[out, in]`, bf16, rows `stride` elements apart with zeros behind their ends.
pub(crate) struct Matrix {
    pub(crate) elements: Array,
    pub(crate) stride: usize,
    bias: Option<Array>,
}

/// Bytes of a matrix.
pub(crate) fn matrix_bytes([outputs, inputs]: [usize; 2]) -> usize {
    2 * outputs.next_multiple_of(OUTPUT_GRANULE) * inputs.next_multiple_of(INPUT_GRANULE)
}

/// Scratch of products.
pub(crate) struct Workspace {
    copy: Array,
    scratch: Array,
}

impl Workspace {
    /// Its bytes.
    pub(crate) fn bytes() -> usize {
        COPY_BYTES + WORKSPACE_BYTES
    }

    pub(crate) fn new(budget: &Arc<Budget>) -> Result<Self, BackendError> {
        Ok(Workspace {
            copy: budget.array("product workspace", COPY_BYTES)?,
            scratch: budget.array("product workspace", WORKSPACE_BYTES)?,
        })
    }
}

/// Fuses and uploads.
pub(crate) fn prepare(gpu: &Gpu, parts: &[WeightPart<'_>]) -> Result<Weight, BackendError> {
    let Fused { shapes, outputs, inputs } = Fused::of(parts)?;
    let stride = inputs.next_multiple_of(INPUT_GRANULE);
    let elements = gpu.budget.zeros("a weight", matrix_bytes([outputs, inputs]))?;
    let mut first = 0;
    for (part, shape) in parts.iter().zip(&shapes) {
        let rows = part.weight.data.to_bf16();
        if stride == inputs {
            gpu.load(&elements, 2 * first * stride, plain_bytes(&rows))?;
        } else {
            let each = rows.chunks_exact(inputs).enumerate();
            { each }.try_for_each(|(i, row)| gpu.load(&elements, 2 * (first + i) * stride, plain_bytes(row)))?;
        }
        first += shape[0];
    }
    let bias = fused_bias(parts, &shapes).map(|bias| vector(gpu, "a bias", &bias)).transpose()?;
    Ok(Weight::new(Arc::new(Matrix { elements, stride, bias }), [outputs, inputs]))
}

fn plain_bytes(elements: &[half::bf16]) -> &[u8] {
    // SAFETY: a bf16 is two plain bytes, and bytes have no alignment.
    unsafe { std::slice::from_raw_parts(elements.as_ptr().cast(), size_of_val(elements)) }
}

/// f32 elements on the device.
pub(crate) fn vector(gpu: &Gpu, what: &'static str, elements: &[f32]) -> Result<Array, BackendError> {
    let array = gpu.budget.array(what, 4 * elements.len())?;
    let bytes: Vec<u8> = elements.iter().flat_map(|x| x.to_le_bytes()).collect();
    array.fill(0, &bytes)?;
    Ok(array)
}

/// Noise, made on the device.
pub(crate) fn random(gpu: &Gpu, [outputs, inputs]: [usize; 2], bias: bool, seed: u64) -> Result<Weight, BackendError> {
    if !inputs.is_multiple_of(INPUT_GRANULE) {
        let what = format!("a random weight of {inputs} inputs");
        return Err(BackendError::Unsupported { what, supported: "on a GPU, multiples of 64" });
    }
    let elements = gpu.budget.zeros("a weight", matrix_bytes([outputs, inputs]))?;
    let (count, width) = ((outputs * inputs) as u64, inputs as i32);
    let how = Launch { kernel: "random_weight", grid: [1024, 1, 1], threads: 256, shared: 0 };
    gpu.kernels.launch(&gpu.main, how, &[arg(&elements.pointer), arg(&count), arg(&width), arg(&seed)])?;
    let bias = bias.then(|| gpu.budget.zeros("a bias", 4 * outputs)).transpose()?;
    Ok(Weight::new(Arc::new(Matrix { elements, stride: inputs, bias }), [outputs, inputs]))
}

/// See [`backend::Runtime`].
pub(crate) fn gemm(rt: &CudaRuntime, batch: Batch, x: View<'_>, weight: &Weight, out: View<'_>) {
    let matrix: &Matrix = weight.downcast().expect("a matrix of this backend");
    let (rows, inputs, outputs) = (rt.rows(batch), weight.in_features(), weight.out_features());
    assert_eq!(x.buffer.cols(), inputs, "gemm: inputs");
    assert_eq!(out.buffer.cols(), outputs, "gemm: outputs");
    let x_view = view(x);
    let is_vector = inputs.is_multiple_of(8);
    if rows <= FEW_ROWS && outputs <= FEW_OUTPUTS {
        match is_vector {
            true => few(rt, rows, (x_view.data, inputs, x_view.is_bf16 == 1), matrix, outputs, out),
            false => few(rt, rows, (copied(rt, x, rows, matrix.stride), matrix.stride, true), matrix, outputs, out),
        }
        return;
    }
    let direct = is_vector && x_view.is_bf16 == 1;
    let most = if direct { rows } else { COPY_BYTES / (2 * matrix.stride) };
    for first in (0..rows).step_by(most) {
        let (n, x, out) =
            (most.min(rows - first), x.buffer.from_row(x.row + first), out.buffer.from_row(out.row + first));
        let (data, stride) =
            if direct { (view(x).data, inputs) } else { (copied(rt, x, n, matrix.stride), matrix.stride) };
        many(rt, n, (data, stride), matrix, [outputs, inputs], out);
    }
    if let Some(bias) = &matrix.bias {
        let grid = [outputs.div_ceil(256), rows, 1];
        let how = Launch { kernel: "add_bias", grid, threads: 256, shared: 0 };
        rt.run(how, &[arg(&view(out)), arg(&bias.pointer)]);
    }
}

/// A bf16 copy of rows of x, `stride` wide.
fn copied(rt: &CudaRuntime, x: View<'_>, rows: usize, stride: usize) -> Pointer {
    let copy = rt.products.copy.pointer;
    assert!(2 * rows * stride <= COPY_BYTES, "a copy of {rows} rows of {stride}");
    let how = Launch { kernel: "to_bf16", grid: [stride.div_ceil(256), rows, 1], threads: 256, shared: 0 };
    rt.run(how, &[arg(&view(x)), arg(&copy), arg(&(stride as i32))]);
    copy
}

/// Up to `FEW_ROWS` rows: `x` is an address, the rows' width, and whether they are bf16.
fn few(
    rt: &CudaRuntime,
    rows: usize,
    (x, cols, is_bf16): (Pointer, usize, bool),
    matrix: &Matrix,
    outputs: usize,
    out: View<'_>,
) {
    let kernel = if is_bf16 { "gemm_few_bf16" } else { "gemm_few_f32" };
    let bias = matrix.bias.as_ref().map_or(0, |bias| bias.pointer);
    let how = Launch { kernel, grid: [outputs.div_ceil(OUTPUT_GRANULE), 1, 1], threads: 256, shared: 0 };
    rt.run(
        how,
        &[
            arg(&x),
            arg(&(cols as i32)),
            arg(&(rows as i32)),
            arg(&matrix.elements.pointer),
            arg(&(matrix.stride as i32)),
            arg(&(outputs as i32)),
            arg(&bias),
            arg(&view(out)),
        ],
    );
}

/// Any number of rows, `x` bf16 with its stride.
fn many(
    rt: &CudaRuntime,
    rows: usize,
    (x, stride): (Pointer, usize),
    matrix: &Matrix,
    [outputs, inputs]: [usize; 2],
    out: View<'_>,
) {
    let out = view(out);
    let element = if out.is_bf16 == 1 { 2 } else { 4 };
    let product = Product {
        rows,
        outputs,
        inputs: if stride == matrix.stride { stride } else { inputs },
        strides: [stride, matrix.stride, outputs],
        out_is_bf16: out.is_bf16 == 1,
        alignments: [
            alignment(x, 2 * stride),
            alignment(matrix.elements.pointer, 2 * matrix.stride),
            alignment(out.data, element * outputs),
        ],
    };
    if rt.failure().is_none() {
        let addresses = [x, matrix.elements.pointer, out.data, rt.products.scratch.pointer];
        rt.note(rt.gpu.cublas.run(&rt.gpu.main, product, addresses));
    }
}

/// The largest power of two up to 256 that divides an address and a stride.
fn alignment(address: Pointer, stride: usize) -> u32 {
    1 << (address | stride as u64 | 256).trailing_zeros()
}
