// Causal attention of a unit of prefill over staged keys and values, flash style.

#include "prefill_attend_mma.cuh"
#include "prefill_attend_wgmma.cuh"

// prefill_attend_<d>: grid [row blocks * kv_heads, parts], 128 threads, shared memory 768 * d bytes (96 KiB at 128: two
// blocks on a multiprocessor of compute capability 9.0). A block takes one KV head and 128 rows.
#define PREFILL_ATTEND(D)                                                                                              \
    extern "C" __global__ void __launch_bounds__(by_mma::THREADS, 2)                                                   \
        prefill_attend_##D(const __grid_constant__ Runtime rt, const bf16* staging, int capacity, int first, int n,    \
                           int chunk, const __grid_constant__ View q, const __grid_constant__ View out) {              \
        by_mma::prefill_attend<D>(rt, staging, capacity, first, n, chunk, q, out);                                     \
    }

PREFILL_ATTEND(64)
PREFILL_ATTEND(96)
PREFILL_ATTEND(128)

// prefill_attend_wgmma_<d>, which a device's machine code has or has not (`Kernels::has`): grid at most the
// multiprocessors, 384 threads and 224 KiB of shared memory at 128, 512 threads and 120 KiB at 64: one block on a
// multiprocessor. Blocks share out all tiles of 128 (192) rows, `parts` times over.
#ifdef __CUDA_ARCH_FEAT_SM90_ALL

#define PREFILL_ATTEND_WGMMA(D)                                                                                        \
    extern "C" __global__ void __launch_bounds__(by_wgmma::THREADS<D>, 1)                                              \
        prefill_attend_wgmma_##D(const __grid_constant__ Runtime rt, const __grid_constant__ TensorMap staged,         \
                                 int first, int n, int chunk, int parts, const __grid_constant__ View q,               \
                                 const __grid_constant__ View out) {                                                   \
        by_wgmma::prefill_attend<D>(rt, staged, first, n, chunk, parts, q, out);                                       \
    }

PREFILL_ATTEND_WGMMA(64)
PREFILL_ATTEND_WGMMA(128)

#endif

// Joins the parts that keys were cut into, ascending: grid [rows, kv_heads], a thread an element. Few rows: launches
// that have enough blocks without are not cut.
extern "C" __global__ void prefill_attend_merge(const __grid_constant__ Runtime rt, int n, int parts,
                                                const __grid_constant__ View out) {
    const int d = rt.head_dim, rows = n * rt.group, row = blockIdx.x, head = blockIdx.y;
    const size_t stride = (size_t)rt.kv_heads * rows * (d + 2);
    const float* first = rt.splits + ((size_t)head * rows + row) * (d + 2);
    float largest = -INFINITY, total = 0.0f, sum = 0.0f;
    for (int part = 0; part < parts; part++) {
        largest = fmaxf(largest, first[part * stride + d]);
    }
    for (int part = 0; part < parts; part++) {
        float weight = exp2_fast(first[part * stride + d] - largest);
        total += weight;
        sum += weight * first[part * stride + threadIdx.x];
    }
    store(out, row / rt.group, (head * rt.group + row % rt.group) * d + threadIdx.x, sum / total);
}
