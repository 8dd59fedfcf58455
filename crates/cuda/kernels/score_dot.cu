// Scores of mean keys: truth is backend/src/cpu/score_dot.rs.
#include "instructions.cuh"
#include "score.cuh"

namespace {

// Units of 16 pages, the rows of one matrix instruction: a frame of mean keys, or two with value sums.
using Pages = Share<1, 16>;

// Queries of a group as `TERMS` bf16 terms that add up to them: one where queries are bf16, three (24 bits) where they
// are f32. Thread (head = thread / 4, quad = thread % 4) has channels 32 m + 8 quad + 0..8.
template <int D, int TERMS>
struct Queries {
    unsigned pairs[TERMS][D / 32][4];

    __device__ __forceinline__ void read(const Runtime& rt, const View& q, int i, int head, int thread) {
        int h = thread / 4, quad = thread % 4;
        bool real = h < rt.group;
        int col = (head * rt.group + (real ? h : 0)) * D + 8 * quad;
#pragma unroll
        for (int m = 0; m < D / 32; m++) {
#pragma unroll
            for (int pair = 0; pair < 4; pair++) {
                float x = load(q, i, col + 32 * m + 2 * pair), y = load(q, i, col + 32 * m + 2 * pair + 1);
#pragma unroll
                for (int term = 0; term < TERMS; term++) {
                    __nv_bfloat162 rounded = __floats2bfloat162_rn(x, y);
                    unsigned bits = *(unsigned*)&rounded;
                    pairs[term][m][pair] = real ? bits : 0;
                    x -= low_bf16(bits);
                    y -= high_bf16(bits);
                }
            }
        }
    }
};

// Mean keys of a unit: thread has rows thread / 4 and, from `[1]` on, 8 more; channels as in `Queries`.
template <int D>
struct Keys {
    uint4 rows[2][D / 32];

    __device__ __forceinline__ void read(const Runtime& rt, int layer, const Pages& share, SummaryRows& table,
                                         bool with_values, int thread) {
        Frames<D> frames(rt, layer, share.head);
        int unit = share.unit;
        table.seek(rt, share.i, with_values ? 2 * unit : unit);
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int row = thread / 4 + 8 * half;
            int of_frame = with_values ? 2 * (row % 8) : row;
            // The last unit may end before its second frame.
            int number = with_values ? min(2 * unit + half, (share.pieces - 1) / 8) : unit;
            const char* frame = frames.at(table.at(number));
            const bf16* vector = (const bf16*)frame + of_frame * D + thread % 4 * 8;
#pragma unroll
            for (int m = 0; m < D / 32; m++) {
                rows[half][m] = __ldg((const uint4*)(vector + 32 * m));
            }
        }
    }
};

// Dot products of 16 pages with 8 heads. Tensor cores cut off what they add: they only add 32 products of the query's
// largest terms, and apart from these the small terms' products, so that what is cut off stays below roundings.
template <int D, int TERMS>
__device__ __forceinline__ void dots(const Keys<D>& keys, const Queries<D, TERMS>& q, float (&out)[4]) {
    float large[4] = {}, small[4] = {};
#pragma unroll
    for (int m = 0; m < D / 32; m++) {
        const uint4 a = keys.rows[0][m], b = keys.rows[1][m];
        float sums[4] = {};
        multiply(sums, a.x, b.x, a.y, b.y, q.pairs[0][m][0], q.pairs[0][m][1]);
        multiply(sums, a.z, b.z, a.w, b.w, q.pairs[0][m][2], q.pairs[0][m][3]);
#pragma unroll
        for (int n = 0; n < 4; n++) {
            large[n] += sums[n];
        }
#pragma unroll
        for (int term = 1; term < TERMS; term++) {
            multiply(small, a.x, b.x, a.y, b.y, q.pairs[term][m][0], q.pairs[term][m][1]);
            multiply(small, a.z, b.z, a.w, b.w, q.pairs[term][m][2], q.pairs[term][m][3]);
        }
    }
#pragma unroll
    for (int n = 0; n < 4; n++) {
        out[n] = large[n] + small[n];
    }
}

template <int D, int TERMS>
__device__ void score(const Runtime& rt, int algorithm, int layer, const View& q, bool with_values) {
    int thread = threadIdx.x % 32, worker = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    Pages share;
    let_successor_start();
    share.start(rt, algorithm, worker, gridDim.x * (blockDim.x / 32));
    if (share.left <= 0) {
        wait_for_predecessor();
        return;
    }
    float root = 1.0f / sqrtf((float)D);
    SummaryRows table;
    Keys<D> keys;
    Queries<D, TERMS> queries;
    keys.read(rt, layer, share, table, with_values, thread);
    // Summaries are older than this step: the first of them are asked for while queries are still being made.
    wait_for_predecessor();
    queries.read(rt, q, share.i, share.head, thread);
    while (true) {
        Pages ahead = share;
        ahead.next(rt, algorithm);
        float sums[4];
        dots<D, TERMS>(keys, queries, sums);
        if (ahead.left > 0) {
            keys.read(rt, layer, ahead, table, with_values, thread);
        }
#pragma unroll
        for (int n = 0; n < 4; n++) {
            int h = thread % 4 * 2 + n % 2, page = share.unit * 16 + thread / 4 + n / 2 * 8;
            if (h < rt.group && page < share.pieces) {
                size_t row = (size_t)share.i * rt.q_heads + share.head * rt.group + h;
                rt.page_scores[row * rt.max_pages + page] = sums[n] * root;
            }
        }
        if (ahead.left <= 0) {
            return;
        }
        if (ahead.i != share.i || ahead.head != share.head) {
            queries.read(rt, q, ahead.i, ahead.head, thread);
        }
        share = ahead;
    }
}

} // namespace

// page_scores[i][q_head][page] = q . mean key / sqrt(d) of indexed pages; `_f32` where queries are f32, else bf16. Any
// grid of warps: they share all frames equally; no shared memory. Reads 2 d bytes a page and KV head, once, and writes
// 4 a page and query head: 20 lanes of 55,000 tokens, 32 query and 8 KV heads, d 128: 282 + 18 MB.
#define SCORE_DOT(D)                                                                                                   \
    extern "C" __global__ void __launch_bounds__(128, 4)                                                               \
        score_dot_##D(const __grid_constant__ Runtime rt, int algorithm, int layer, View q, int with_values) {         \
        score<D, 1>(rt, algorithm, layer, q, with_values);                                                             \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(128, 3)                                                               \
        score_dot_##D##_f32(const __grid_constant__ Runtime rt, int algorithm, int layer, View q, int with_values) {   \
        score<D, 3>(rt, algorithm, layer, q, with_values);                                                             \
    }
SCORE_DOT(64)
SCORE_DOT(96)
SCORE_DOT(128)
