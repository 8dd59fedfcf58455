//! pool_mean, rotate_code. Of a sequence's rows they run aside, behind the scatter that filled them; of lanes in the
//! step.

use crate::abi::{Pointer, UnitsArgument};
use crate::kernels::{Argument, Launch, arg};
use crate::runtime::{CudaRuntime, Vector, vector};
use backend::sketch::GROUP_PAGES;
use backend::{AlgorithmId, Batch, IndexUnits, Rotations, VectorSummary, Weight};
use kv::{PAGE_TOKENS, RowId};

/// Pages that a block of `pool_mean` takes.
const POOL_PAGES: usize = 8;

/// What an Index kernel works on.
struct Work {
    units: UnitsArgument,
    /// Units: blocks that have something to do, or may have.
    count: usize,
    /// Whether it is of a sequence's rows.
    aside: bool,
}

/// Units of `unit_pages` pages; pages `n * row_pages..` have their summaries in summary row `n`. `None` where there is
/// nothing to do.
fn work(
    rt: &CudaRuntime,
    algorithm: AlgorithmId,
    units: IndexUnits<'_>,
    unit_pages: usize,
    row_pages: usize,
) -> Option<Work> {
    let algorithm = i32::from(algorithm.0);
    let IndexUnits::Rows { kv_rows, summary_rows, tokens: (first, end) } = units else {
        let units = UnitsArgument { kv_rows: 0, summary_rows: 0, first: 0, end: 0, algorithm };
        return Some(Work { units, count: rt.rows(Batch::Lanes), aside: false });
    };
    assert!(first <= end && first % PAGE_TOKENS == 0 && end % PAGE_TOKENS == 0, "pages of {first}..{end}");
    let (first, end) = (first / PAGE_TOKENS, end / PAGE_TOKENS);
    if first == end {
        return None;
    }
    let units = UnitsArgument {
        kv_rows: table(rt, kv_rows, first, end),
        summary_rows: table(rt, summary_rows, first / row_pages, end.div_ceil(row_pages)),
        first: first as i32,
        end: end as i32,
        algorithm,
    };
    Some(Work { units, count: (end - first).div_ceil(unit_pages), aside: true })
}

/// Uploads rows `first..end` of a table; the address is that of row 0, were it there.
fn table(rt: &CudaRuntime, rows: &[RowId], first: usize, end: usize) -> Pointer {
    let words: Vec<u32> = rows[first..end].iter().map(|row| row.0).collect();
    rt.upload(&words).wrapping_sub(4 * first as u64)
}

fn run(rt: &CudaRuntime, aside: bool, how: Launch<'_>, arguments: &[Argument<'_>]) {
    match aside {
        true => {
            rt.fork();
            rt.run_aside(how, arguments);
        }
        false => rt.run(how, arguments),
    }
}

/// See [`backend::Runtime`].
pub(crate) fn pool_mean(
    rt: &CudaRuntime,
    algorithm: AlgorithmId,
    layer: usize,
    units: IndexUnits<'_>,
    form: VectorSummary,
) {
    let Some(work) = work(rt, algorithm, units, POOL_PAGES, form.row_pages()) else { return };
    let grid = [work.count, rt.shape.geometry.kv_heads, 1];
    let how = Launch { kernel: "pool_mean", grid, threads: 128, shared: 0 };
    let [unit_pages, layer, vectors] = [POOL_PAGES, layer, form.page_vectors()].map(|n| n as i32);
    let arguments = [arg(&rt.argument), arg(&work.units), arg(&unit_pages), arg(&layer), arg(&vectors)];
    run(rt, work.aside, how, &arguments);
}

/// See [`backend::Runtime`].
pub(crate) fn rotate_code(
    rt: &CudaRuntime,
    algorithm: AlgorithmId,
    layer: usize,
    units: IndexUnits<'_>,
    rotations: Rotations<'_>,
) {
    let (heads, d) = (rt.shape.geometry.kv_heads, rt.shape.geometry.head_dim);
    let Some(work) = work(rt, algorithm, units, GROUP_PAGES, GROUP_PAGES) else { return };
    let [first, end] = [work.units.first, work.units.end].map(|page| page as usize);
    assert!(first % GROUP_PAGES == 0 && end % GROUP_PAGES == 0, "pages {first}..{end} are whole groups");
    // A block keeps its rotation in registers and takes group after group; one fits on a multiprocessor.
    let blocks = work.count.min((rt.gpu.sms / (2 * heads)).max(1));
    let kernel = format!("rotate_code_{d}");
    let shared = rotate_shared(d, if work.aside { 0 } else { work.count });
    let how = Launch { kernel: &kernel, grid: [blocks, heads, 2], threads: 2 * d, shared };
    let [count, layer] = [work.count, layer].map(|n| n as i32);
    let [keys, values] = [rotations.key, rotations.value].map(|weight| rotation(weight, heads, d));
    let arguments = [arg(&rt.argument), arg(&work.units), arg(&count), arg(&layer), arg(&keys), arg(&values)];
    run(rt, work.aside, how, &arguments);
}

/// Shared memory of `rotate_code`: two groups of tokens, rotated values and codes, as `RotateShared` has them, then
/// two numbers of each of `lanes`.
fn rotate_shared(d: usize, lanes: usize) -> usize {
    let tokens = GROUP_PAGES * PAGE_TOKENS;
    tokens * (2 * 2 * (d + 8) + 4 * (d + 4) + d / 4) + 8 * lanes
}

/// A rotation's address.
fn rotation(weight: &Weight, heads: usize, d: usize) -> Pointer {
    let bytes = weight.downcast::<Vector>().map(|vector| vector.elements.bytes);
    assert_eq!(bytes, Some(4 * heads * d * d), "a rotation of another shape");
    vector(weight)
}
