// Page scores of query heads to one per KV head.
#include "runtime.cuh"

constexpr int REDUCE_THREADS = 1024;
constexpr int REDUCE_WARPS = REDUCE_THREADS / 32;
constexpr int AT_ONCE = 8;         // scores that a thread has under way
constexpr float LEAST = -3.0e38f;  // below every score: no difference of infinities arises
constexpr float LOG2_E = 1.44269504f;

// Largest score, and the sum of e^(score - largest).
struct LogSum {
    float most, sum;
};

// e^x in three instructions, off by at most 2^-22 of itself for the x of large terms.
__device__ __forceinline__ float exp_near(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * LOG2_E));
    return y;
}

template <bool WHOLE, int STEP>
__device__ __forceinline__ void add_scores(LogSum& all, const float* scores, int left) {
    float x[AT_ONCE], most = all.most, sum = 0.0f;
#pragma unroll
    for (int n = 0; n < AT_ONCE; n++) {
        x[n] = WHOLE || n * STEP < left ? scores[n * STEP] : -INFINITY;
    }
#pragma unroll
    for (int n = 0; n < AT_ONCE; n++) {
        most = fmaxf(most, x[n]);
    }
#pragma unroll
    for (int n = 0; n < AT_ONCE; n++) {
        sum += exp_near(x[n] - most);
    }
    all.sum = all.sum * exp_near(all.most - most) + sum;
    all.most = most;
}

// Of a warp's sums.
__device__ __forceinline__ LogSum warp_join(LogSum own) {
    float most = warp_max(own.most);
    return {most, warp_sum(own.sum * exp_near(own.most - most))};
}

// One block's rows with groups of G query heads: each warp takes a share of one head's scores, then all go over the
// pages.
template <int G>
__device__ __forceinline__ void reduce_group(const float* scores, int max_pages, int count, float* reduced) {
    constexpr int SHARES = REDUCE_WARPS / G, STEP = SHARES * 32;
    __shared__ LogSum parts[REDUCE_WARPS];
    __shared__ float lse[GROUP_MAX];
    int warp = threadIdx.x / 32, thread = threadIdx.x % 32;
    if (warp < SHARES * G) {
        const float* own = scores + (size_t)(warp / SHARES) * max_pages;
        LogSum sum = {LEAST, 0.0f};
        int first = warp % SHARES * 32 + thread;
        for (; first + (AT_ONCE - 1) * STEP < count; first += AT_ONCE * STEP) {
            add_scores<true, STEP>(sum, own + first, count - first);
        }
        if (first < count) {
            add_scores<false, STEP>(sum, own + first, count - first);
        }
        sum = warp_join(sum);
        if (thread == 0) {
            parts[warp] = sum;
        }
    }
    __syncthreads();
    if (warp < G) {
        LogSum sum = warp_join(thread < SHARES ? parts[warp * SHARES + thread] : LogSum{LEAST, 0.0f});
        lse[warp] = sum.most + logf(sum.sum);
    }
    __syncthreads();
#pragma unroll 2
    for (int j = threadIdx.x; j < count; j += REDUCE_THREADS) {
        float most = -INFINITY;
#pragma unroll
        for (int h = 0; h < G; h++) {
            most = fmaxf(most, scores[(unsigned)(h * max_pages + j)] - lse[h]);
        }
        reduced[j] = most;
    }
}

// reduced[page] = max over the group's heads of log softmax(page), the softmax over the candidates only.
// Grid (kv_heads, rows), 1024 threads. Shared memory: a log-sum-exp a warp and head.
// Bytes: scores once from memory and once more from the L2 cache, reduced once: 18 + 4.5 MB at 20 lanes x 8 heads x
// 4 x 7K pages: 7 us at 3 TB/s. About 500 instructions a warp there: 3 us a block, and some multiprocessors have two.
extern "C" __global__ void __launch_bounds__(REDUCE_THREADS, 2)
    group_reduce(const __grid_constant__ Runtime rt, int algorithm) {
    let_successor_start();
    wait_for_predecessor();
    int head = blockIdx.x, i = blockIdx.y;
    if (*rt.n_active <= i) {
        return;
    }
    const Lane& lane = rt.lanes[rt.active[i]];
    if (lane.algorithm != algorithm) {
        return;
    }
    Selected at = selected_at(lane.selection, lane.len);
    if (!at.pages) {
        return;
    }
    int count = at.indexed - at.sink, pages = rt.max_pages;
    const float* scores = rt.page_scores + ((size_t)i * rt.q_heads + (size_t)head * rt.group) * pages + at.sink;
    float* reduced = rt.reduced + ((size_t)i * rt.kv_heads + head) * pages + at.sink;
    switch (rt.group) {
        case 1: return reduce_group<1>(scores, pages, count, reduced);
        case 2: return reduce_group<2>(scores, pages, count, reduced);
        case 3: return reduce_group<3>(scores, pages, count, reduced);
        case 4: return reduce_group<4>(scores, pages, count, reduced);
        case 5: return reduce_group<5>(scores, pages, count, reduced);
        case 6: return reduce_group<6>(scores, pages, count, reduced);
        case 7: return reduce_group<7>(scores, pages, count, reduced);
        case 8: return reduce_group<8>(scores, pages, count, reduced);
    }
}
