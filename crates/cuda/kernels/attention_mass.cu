// How much of dense attention the exact tokens hold: a measurement, in two kernels.
#include "attend.cuh"

// The base-2 log-sum-exp of query head `g` over an item's keys; these lie close together in the workspace of parts.
__device__ __forceinline__ float* part_place(const Runtime& rt, int number, int head, int g) {
    return rt.splits + ((size_t)number * rt.kv_heads + head) * rt.group + g;
}

template <int D>
__device__ __forceinline__ void attention_mass(const Runtime& rt, int algorithm, int layer, const View& q) {
    extern __shared__ __align__(128) char rings[];
    __shared__ unsigned valid[WARPS][STAGES<D>];
    __shared__ float2 sums[WARPS][GROUP_MAX];
    int warp = threadIdx.x / 32, thread = threadIdx.x % 32;
    unsigned ring = (unsigned)__cvta_generic_to_shared(rings + warp * WARP_RING<D, false>);
    const Schedule* s = schedule(rt, algorithm, ROWS);
    let_successor_start();
    wait_for_predecessor();
    const int head = blockIdx.x;
    for (int number = blockIdx.y; number < s->items; number += gridDim.y) {
        Item item = item_of_warp(rt, s, number, thread);
        if (rt.residency.caches[item.lane].rows > 0) {
            continue; // its pages are not all in the pool, and nobody asks: who does is fully resident
        }
        Pages pages;
        pages.is_list = false;
        pages.pass = ALL;
        pages.table = rt.kv_rows + (size_t)item.lane * rt.max_pages;
        pages.open(rt, item, layer, head, warp, thread);
        pages.tokens = *(const volatile int*)&rt.lanes[item.lane].len;
        pages.bound(item, pages_of(pages.tokens));
        Softmax<D, false> softmax;
        auto read = [&](Queries<D>& queries) { queries.read(q, item.i, head * rt.group, rt.group, thread); };
        run_pages<D, false>(pages, ring, valid[warp], softmax, thread, read);
        if (thread % 4 == 0) {
            sums[warp][thread / 4] = make_float2(softmax.largest, softmax.sum);
        }
        __syncthreads();
        if (threadIdx.x < rt.group) {
            float largest = -INFINITY, sum = 0;
            for (int w = 0; w < WARPS; w++) {
                largest = fmaxf(largest, sums[w][threadIdx.x].x);
            }
            for (int w = 0; w < WARPS; w++) {
                sum += exp2_fast(sums[w][threadIdx.x].x - largest) * sums[w][threadIdx.x].y;
            }
            *part_place(rt, number, head, threadIdx.x) = largest + log2f(sum);
        }
        __syncthreads();
    }
}

// Log-sum-exps of each lane's queries over the keys of its row table, a part for each item of the algorithm's ROWS
// schedule. Grid: (kv_heads, any), 128 threads; items are taken in turn. Shared: 48 KiB, as in `attend`.
// Bytes: K of the pages; held to a third of the speed of `attend`.
#define ATTENTION_MASS(D)                                                                                          \
    extern "C" __global__ void __launch_bounds__(WARPS * 32, 2)                                                    \
        attention_mass_##D(const __grid_constant__ Runtime rt, int algorithm, int layer,                           \
                           const __grid_constant__ View q) {                                                       \
        attention_mass<D>(rt, algorithm, layer, q);                                                                \
    }

ATTENTION_MASS(64)
ATTENTION_MASS(96)
ATTENTION_MASS(128)

// Joins the parts, ascending, and adds exp(lse of `exact` - dense lse) of all query heads, in order, to each lane's
// mass. Grid: (rows), threads: q_heads rounded up to 32. Shared: a double for each thread. A few us.
extern "C" __global__ void attention_mass_add(const __grid_constant__ Runtime rt, int algorithm,
                                              const __grid_constant__ Partial exact) {
    extern __shared__ double shares[];
    int i = blockIdx.x, h = threadIdx.x;
    let_successor_start();
    wait_for_predecessor();
    if (*rt.n_active <= i || rt.lanes[rt.active[i]].algorithm != algorithm) {
        return;
    }
    const Schedule* s = schedule(rt, algorithm, ROWS);
    if (h < rt.q_heads) {
        float largest = -INFINITY, sum = 0;
        for (int number = s->first[i]; number < s->first[i + 1]; number++) {
            largest = fmaxf(largest, *part_place(rt, number, h / rt.group, h % rt.group));
        }
        for (int number = s->first[i]; number < s->first[i + 1]; number++) {
            sum += exp2_fast(*part_place(rt, number, h / rt.group, h % rt.group) - largest);
        }
        float dense = (largest + log2f(sum)) * LN_2;
        shares[h] = exp((double)(exact.lse[(size_t)i * rt.q_heads + h] - dense));
    }
    __syncthreads();
    if (h == 0) {
        double mass = 0;
        for (int other = 0; other < rt.q_heads; other++) {
            mass += shares[other];
        }
        Lane& lane = rt.lanes[rt.active[i]];
        lane.mass += mass;
        lane.mass_count += rt.q_heads;
    }
}
