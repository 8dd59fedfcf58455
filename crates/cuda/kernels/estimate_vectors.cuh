// Estimate from value sums and the page logits that `score_dot` left.
#pragma once

#include "estimate.cuh"

// A warp's 32 pages, those that matter first.
template <int SLOTS>
struct Pages {
    unsigned places[32]; // summary row * 8 + page of its frame
    alignas(16) float weights[32][SLOTS];
};

// Adds 32 pages from `page` on, one a thread, to a warp's sums; thread t has channels 8 (t % (D / 8)) + 0..8, of every
// (32 / (D / 8))-th page.
template <int D, int SLOTS>
__device__ __forceinline__ void add_pages(const Runtime& rt, const Task<D, SLOTS>& task, const Frames<D>& pool,
                                          int page, const float* most, Pages<SLOTS>& pages, float (&p)[SLOTS],
                                          float (&sums)[SLOTS][8]) {
    constexpr int LANES = D / 8, AT_ONCE = 32 / LANES, DEEP = 16 / AT_ONCE;
    int thread = threadIdx.x % 32, at = min(page + thread, task.end - 1);
    unsigned row = __ldg(rt.summary_rows + (size_t)task.lane * rt.max_pages + at / 8);
    bool in = task.includes(at) & (page + thread < task.end), matters = false;
    float weights[SLOTS];
#pragma unroll
    for (int h = 0; h < SLOTS; h++) {
        float x = task.score(rt, h, at);
        matters |= in && x > most[h] - NEGLIGIBLE;
        weights[h] = in ? exp2_fast((x - most[h]) * LOG2_E) : 0.0f;
        p[h] += weights[h];
    }
    unsigned some = __ballot_sync(FULL, matters), before = (1u << thread) - 1;
    int count = __popc(some), place = matters ? __popc(some & before) : count + __popc(~some & before);
    __syncwarp();
    pages.places[place] = row * 8 + at % 8;
#pragma unroll
    for (int h = 0; h < SLOTS; h += 4) {
        float4 w = {weights[h], weights[h + 1], weights[h + 2], weights[h + 3]};
        *(float4*)&pages.weights[place][h] = matters ? w : float4{0, 0, 0, 0};
    }
    __syncwarp();
    int mine = min(thread / LANES, AT_ONCE - 1), channel = thread % LANES * 8;
    for (int first = 0; first < count; first += DEEP * AT_ONCE) {
        uint4 values[DEEP];
#pragma unroll
        for (int n = 0; n < DEEP; n++) {
            unsigned from = pages.places[min(first + n * AT_ONCE + mine, 31)];
            if (first + n * AT_ONCE < count) {
                const bf16* vectors = (const bf16*)pool.at(from / 8) + (from % 8 * 2 + 1) * D;
                values[n] = __ldg((const uint4*)(vectors + channel));
            }
        }
#pragma unroll
        for (int n = 0; n < DEEP; n++) {
            if (first + n * AT_ONCE < count) {
                const float* weight = pages.weights[first + n * AT_ONCE + mine];
                const unsigned* pairs = (const unsigned*)&values[n];
#pragma unroll
                for (int h = 0; h < SLOTS; h++) {
#pragma unroll
                    for (int c = 0; c < 8; c++) {
                        float value = c % 2 ? high_bf16(pairs[c / 2]) : low_bf16(pairs[c / 2]);
                        sums[h][c] = fmaf(weight[h], value, sums[h][c]);
                    }
                }
            }
        }
    }
}

// Joins the warps' sums to results.
template <int D, int SLOTS>
__device__ __forceinline__ void join_vectors(const float (&sums)[SLOTS][8], float (&p)[SLOTS],
                                             typename Task<D, SLOTS>::Shared& shared) {
    constexpr int LANES = D / 8, AT_ONCE = 32 / LANES;
    int thread = threadIdx.x % 32, warp = threadIdx.x / 32;
#pragma unroll
    for (int h = 0; h < SLOTS; h++) {
        p[h] = warp_sum(p[h]);
        if (thread == 0) {
            shared.totals[0][warp][h] = p[h];
        }
#pragma unroll
        for (int c = 0; c < 8; c++) {
            float sum = sums[h][c];
#pragma unroll
            for (int n = 1; n < AT_ONCE; n++) {
                sum += __shfl_sync(FULL, sums[h][c], thread % LANES + n * LANES);
            }
            if (thread < LANES) {
                shared.sums[(warp * SLOTS + h) * D + 8 * thread + c] = sum;
            }
        }
    }
    __syncthreads();
#pragma unroll
    for (int h = 0; h < SLOTS; h++) {
        float total = 0, sum = 0;
#pragma unroll
        for (int warp = 0; warp < WARPS; warp++) {
            total += shared.totals[0][warp][h];
            sum += (int)threadIdx.x < D ? shared.sums[(warp * SLOTS + h) * D + threadIdx.x] : 0.0f;
        }
        bool some = total > 0;
        if ((int)threadIdx.x < D) {
            shared.result[h][threadIdx.x] = some ? sum / (PAGE_TOKENS * total) : 0.0f;
        }
        if (threadIdx.x == 0) {
            shared.lse[h] = some ? shared.most[h] + logf(PAGE_TOKENS * total) : -INFINITY;
        }
    }
    __syncthreads();
}

template <int D, int SLOTS>
__device__ __forceinline__ void estimate_vectors(const Runtime& rt, int algorithm, int layer, bool beside,
                                                 const Partial& out) {
    __shared__ typename Task<D, SLOTS>::Shared shared;
    __shared__ Pages<SLOTS> pages[WARPS];
    let_successor_start();
    if (!beside) {
        wait_for_predecessor();
    }
    run_items<D, SLOTS>(rt, algorithm, nullptr, out, shared, [&](const Task<D, SLOTS>& task) {
        Frames<D> pool(rt, layer, task.head);
        float p[SLOTS] = {}, sums[SLOTS][8] = {};
        int warp = threadIdx.x / 32;
        for (int page = task.first + 32 * warp; page < task.end; page += THREADS) {
            add_pages<D, SLOTS>(rt, task, pool, page, shared.most, pages[warp], p, sums);
        }
        join_vectors<D, SLOTS>(sums, p, shared);
    });
}
