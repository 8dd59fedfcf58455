// Index of mean keys: one mean (and value sum) a page.
#include "runtime.cuh"

constexpr int POOL_THREADS = 128;

// factor * (sum over the page's eight tokens, first to last) of eight channels from `x` on, rounded to bf16.
__device__ __forceinline__ uint4 sum_of_page(const bf16* x, int d, float factor) {
    uint4 tokens[PAGE_TOKENS];
#pragma unroll
    for (int t = 0; t < PAGE_TOKENS; t++) {
        tokens[t] = *(const uint4*)(x + t * d);
    }
    uint4 out;
#pragma unroll
    for (int pair = 0; pair < 4; pair++) {
        float2 sum = make_float2(0.0f, 0.0f);
#pragma unroll
        for (int t = 0; t < PAGE_TOKENS; t++) {
            float2 y = __bfloat1622float2(((const __nv_bfloat162*)&tokens[t])[pair]);
            sum = t == 0 ? y : make_float2(sum.x + y.x, sum.y + y.y);
        }
        ((__nv_bfloat162*)&out)[pair] = __floats2bfloat162_rn(sum.x * factor, sum.y * factor);
    }
    return out;
}

// Vectors of every page of the units: the mean key, and (vectors = 2) the sum of values. Grid (units of `unit_pages`
// pages, kv_heads), 128 threads, each eight channels of a page's keys or values. No shared memory.
// Bytes: K (and V) once, a sixteenth of that written: 64 MiB a layer at 32K tokens x 8 heads x 128: 24 us at 3 TB/s.
extern "C" __global__ void __launch_bounds__(POOL_THREADS)
    pool_mean(const __grid_constant__ Runtime rt, const __grid_constant__ Units units, int unit_pages, int layer,
              int vectors) {
    let_successor_start();
    wait_for_predecessor();
    int head = blockIdx.y, d = rt.head_dim, row_pages = 2 * PAGE_TOKENS / vectors;
    Unit unit = unit_of(rt, units, blockIdx.x, unit_pages);
    int eights = d / 8;
    for (int n = threadIdx.x; n < (unit.end - unit.first) * vectors * eights; n += POOL_THREADS) {
        int page = unit.first + n / (vectors * eights), vector = n / eights % vectors, c = n % eights * 8;
        const bf16* source = home_frame(rt, unit.kv_rows[page], layer, head) + vector * PAGE_TOKENS * d;
        bf16* target = frame(rt, unit.summary_rows[page / row_pages], layer, head);
        target += (page % row_pages * vectors + vector) * d;
        *(uint4*)(target + c) = sum_of_page(source + c, d, vector == 0 ? 0.125f : 1.0f);
    }
}
