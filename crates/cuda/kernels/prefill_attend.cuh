// What the kernels of prefill attention share: a block's rows and keys, the softmax of its rows, where results go.
//
// A row is one query head of one token: row r of a KV head is head r % group of token r / group. So keys and values
// that a block brings in serve the whole group, and one token alone has only one block. Keys come in steps at absolute
// multiples of their number, and no row's numbers depend on another's: without parts, a row is the same bit for bit
// whatever unit it came in.
#pragma once

#include "instructions.cuh"
#include "runtime.cuh"

namespace {

constexpr float LOG2_E = 1.44269504f;

// The offset of a row that has seen no key: below any logit, and finite, so that no difference is NaN.
constexpr float LOWEST = -1e38f;

// Weights are at most 2^this.
constexpr float SLACK = 8.0f;

__device__ __forceinline__ unsigned pack(float low, float high) {
    __nv_bfloat162 two = __floats2bfloat162_rn(low, high);
    return *(unsigned*)&two;
}

// 16 bytes to shared memory: those of `source` or, where they do not count, zeros.
__device__ __forceinline__ void copy_async(unsigned target, const void* source, bool counts) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(target), "l"(source),
                 "r"(counts ? 16 : 0)
                 : "memory");
}

__device__ __forceinline__ void copies_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// Over the four threads that share a row.
__device__ __forceinline__ float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(FULL, x, 1));
    return fmaxf(x, __shfl_xor_sync(FULL, x, 2));
}

__device__ __forceinline__ float row_sum(float x) {
    x += __shfl_xor_sync(FULL, x, 1);
    return x + __shfl_xor_sync(FULL, x, 2);
}

// What a block works on.
struct Block {
    int head, first_row, rows; // rows of the unit, of this head
    int begin, end;            // keys
};

// Block `number` of a part, of `ROWS` rows: longest first, so that no block ends long after the others; heads beside
// one another.
template <int ROWS>
__device__ __forceinline__ Block block_of(const Runtime& rt, int first, int n, int chunk, unsigned number,
                                          unsigned part) {
    Block block;
    block.rows = n * rt.group;
    int blocks = (block.rows + ROWS - 1) / ROWS;
    block.head = number % rt.kv_heads;
    block.first_row = (blocks - 1 - number / rt.kv_heads) * ROWS;
    block.begin = part * chunk;
    int sees = first + (min(block.first_row + ROWS, block.rows) - 1) / rt.group + 1;
    block.end = min(sees, block.begin + chunk);
    return block;
}

// Brings 8 elements of a block's query, `row` counted from the block's first; f32 ones are rounded. Zeros behind the
// last row. bf16 ones arrive with `copies_wait`.
template <int D>
__device__ __forceinline__ void bring_query(const Runtime& rt, const Block& block, const View& q, int row, int piece,
                                            unsigned char* target) {
    row += block.first_row;
    bool counts = row < block.rows;
    row = counts ? row : 0;
    size_t from = (size_t)(row / rt.group) * q.cols + (block.head * rt.group + row % rt.group) * D + piece * 8;
    if (q.is_bf16) {
        copy_async((unsigned)__cvta_generic_to_shared(target), (const bf16*)q.data + from, counts);
    } else {
        const float4* x = (const float4*)((const float*)q.data + from);
        float4 low = x[0], high = x[1];
        uint4 eight = make_uint4(pack(low.x, low.y), pack(low.z, low.w), pack(high.x, high.y), pack(high.z, high.w));
        *(uint4*)target = counts ? eight : make_uint4(0, 0, 0, 0);
    }
}

// What a warp has of its `TILES` tiles of 16 rows so far: element e of a tile's 8 columns is row e / 2 * 8 + lane / 4
// of the tile and column lane % 4 * 2 + e % 2.
template <int D, int TILES>
struct State {
    float sums[TILES][D / 8][4];
    float offset[TILES][2]; // weights are 2^(logit - offset), logits times log2 e
    float total[TILES][2];  // this thread's part
};

template <int D, int TILES>
__device__ __forceinline__ void clear(State<D, TILES>& state) {
#pragma unroll
    for (int t = 0; t < TILES; t++) {
        state.offset[t][0] = state.offset[t][1] = LOWEST;
        state.total[t][0] = state.total[t][1] = 0.0f;
#pragma unroll
        for (int c = 0; c < D / 8; c++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                state.sums[t][c][e] = 0.0f;
            }
        }
    }
}

template <int D>
__device__ __forceinline__ constexpr float scale() {
    return (D == 64 ? 0.125f : D == 96 ? 0.102062073f : 0.0883883476f) * LOG2_E;
}

// Hides keys behind each row's own; `row` and `key` are the thread's first of the unit and of the step.
template <int TILES, int C>
__device__ __forceinline__ void hide(float (&logits)[TILES][C][4], int row, int group, int first, int key) {
#pragma unroll
    for (int t = 0; t < TILES; t++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int last = first + (row + t * 16 + half * 8) / group;
#pragma unroll
            for (int c = 0; c < C; c++) {
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    if (key + c * 8 + e > last) {
                        logits[t][c][half * 2 + e] = -INFINITY;
                    }
                }
            }
        }
    }
}

// Raises offsets that a step's logits pass by more than `SLACK`. An offset need not be the largest logit so far, only
// near enough that no weight is huge: in most steps no row's is raised, and sums are not rescaled. A row's is raised
// for its own logits alone. Where any row's of the warp is, each half tile's factor goes to `rescale`, and the result
// is true.
template <int D, int TILES, int C, class Rescale>
__device__ __forceinline__ bool raise_offsets(const float (&logits)[TILES][C][4], State<D, TILES>& state,
                                              Rescale rescale) {
    float largest[TILES][2];
    bool low = false;
#pragma unroll
    for (int t = 0; t < TILES; t++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float x = -INFINITY;
#pragma unroll
            for (int c = 0; c < C; c++) {
                x = fmaxf(x, fmaxf(logits[t][c][half * 2], logits[t][c][half * 2 + 1]));
            }
            largest[t][half] = x * scale<D>();
            low |= largest[t][half] > state.offset[t][half] + SLACK;
        }
    }
    if (!__any_sync(FULL, low)) {
        return false;
    }
#pragma unroll
    for (int t = 0; t < TILES; t++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float before = state.offset[t][half], x = row_max(largest[t][half]);
            float after = x > before + SLACK ? x : before, factor = exp2_fast(before - after);
            state.offset[t][half] = after;
            state.total[t][half] *= factor;
            rescale(t, half, factor);
        }
    }
    return true;
}

template <int D, int TILES>
__device__ __forceinline__ void rescale_row(State<D, TILES>& state, int t, int half, float factor) {
#pragma unroll
    for (int c = 0; c < D / 8; c++) {
        state.sums[t][c][half * 2] *= factor;
        state.sums[t][c][half * 2 + 1] *= factor;
    }
}

// Makes weights of a step's logits. Of 16 keys, 16 * i and following, a thread has 4 pairs of each tile: `from..to` of
// all tiles' pairs.
template <int D, int TILES, int C>
__device__ __forceinline__ void weigh(float (&logits)[TILES][C][4], State<D, TILES>& state, int i, int from, int to) {
#pragma unroll
    for (int pair = from; pair < to; pair++) {
        int t = pair / 4, c = pair / 2 % 2, half = pair % 2;
        float(&four)[4] = logits[t][2 * i + c];
        float& x = four[half * 2];
        float& y = four[half * 2 + 1];
        x = exp2_fast(fmaf(x, scale<D>(), -state.offset[t][half]));
        y = exp2_fast(fmaf(y, scale<D>(), -state.offset[t][half]));
        state.total[t][half] += x + y;
    }
}

// Rounds such weights to the first operand of the product with values.
template <int TILES, int C>
__device__ __forceinline__ void round_weights(unsigned (&rounded)[TILES][4], const float (&weights)[TILES][C][4], int i,
                                              int from, int to) {
#pragma unroll
    for (int pair = from; pair < to; pair++) {
        int t = pair / 4, c = pair / 2 % 2, half = pair % 2;
        const float(&four)[4] = weights[t][2 * i + c];
        rounded[t][c * 2 + half] = pack(four[half * 2], four[half * 2 + 1]);
    }
}

// One half tile's row to `out` or, where the keys are in parts, to the part's row of `rt.splits`.
template <int D, int TILES>
__device__ __forceinline__ void put(const Runtime& rt, const Block& block, unsigned part, unsigned parts,
                                    const View& out, const State<D, TILES>& state, int t, int half, int row) {
    float total = row_sum(state.total[t][half]);
    if (row >= block.rows) {
        return;
    }
    float factor = total == 0.0f ? 0.0f : 1.0f / total; // a part may have no key that the row sees
    int thread = threadIdx.x % 4;
    float* split = rt.splits + (((size_t)part * rt.kv_heads + block.head) * block.rows + row) * (D + 2);
    size_t at = (size_t)(row / rt.group) * out.cols + (block.head * rt.group + row % rt.group) * D;
#pragma unroll
    for (int c = 0; c < D / 8; c++) {
        float x = state.sums[t][c][half * 2] * factor, y = state.sums[t][c][half * 2 + 1] * factor;
        int col = c * 8 + thread * 2;
        if (parts > 1) {
            *(float2*)(split + col) = make_float2(x, y);
        } else if (out.is_bf16) {
            *(unsigned*)((bf16*)out.data + at + col) = pack(x, y);
        } else {
            *(float2*)((float*)out.data + at + col) = make_float2(x, y);
        }
    }
    if (parts > 1 && thread == 0) {
        split[D] = total == 0.0f ? -INFINITY : state.offset[t][half] + log2f(total);
    }
}

} // namespace
