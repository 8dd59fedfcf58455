// Prefill attention by mma.sync, for every architecture and head size.
//
// Each warp keeps the sums of 32 rows in registers.
//
// Estimate, 32 query heads of 128, 8 KV heads, 32768 tokens: 8.8 TFLOP, 27.5 ms at 320 TFLOP/s. mma.sync does 643
// TFLOP/s from registers (H200); but a block's step of 64 keys reads 160 KiB of shared memory and writes 32, 1536
// clocks of it beside 1536 of products, and its exponentials take 512. Measured (H200): 20.0 ms, 440 TFLOP/s; products
// run in 66 % of the clocks, at 1.66 GHz, since the card is at its power limit. More rows a warp, or queries in
// registers, would read less and do not fit in 255 registers.
#pragma once

#include "prefill_attend.cuh"

namespace by_mma {

constexpr int WARPS = 4;
constexpr int THREADS = 32 * WARPS;
constexpr int TILES = 2; // of 16 rows, each warp's: two share what is read of keys and values
constexpr int WARP_ROWS = 16 * TILES;
constexpr int ROWS = WARP_ROWS * WARPS;
constexpr int KEYS = 64; // of a step
constexpr int KEY_TILES = KEYS / 8;

typedef float Logits[TILES][KEY_TILES][4];
typedef unsigned Weights[TILES][4]; // of 16 keys

// ---- instructions

__device__ __forceinline__ void load_matrices(unsigned (&out)[4], unsigned source) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(source));
}

__device__ __forceinline__ void load_transposed(unsigned (&out)[4], unsigned source) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(source));
}

// ---- shared memory: rows of `D` elements in pieces of 16 bytes, exchanged so that ldmatrix meets every bank once

template <int D>
constexpr int PITCH = 2 * D;

template <int D>
constexpr int STEP_BYTES = KEYS * PITCH<D>;

// Pieces that are exchanged among themselves.
template <int D>
constexpr int EXCHANGED = D % 64 == 0 ? 8 : 4;

// What a row's pieces are exchanged by.
template <int D>
__device__ __forceinline__ int exchange(int row) {
    return D % 64 == 0 ? row & 7 : row >> 1 & 3;
}

// Where a lane reads of a tile of 16 rows for ldmatrix, from the tile's start: piece 0 or 1 of a row, exchanged.
template <int D>
__device__ __forceinline__ unsigned reader(int row, int piece) {
    return row * PITCH<D> + (piece ^ exchange<D>(row)) * 16;
}

// The same of columns 16 * i and following, given the address of the first columns. What is exchanged lies in aligned
// 128 (64) bytes.
template <int D>
__device__ __forceinline__ unsigned columns(unsigned address, int i) {
    constexpr int PAIRS = EXCHANGED<D> / 2;
    return (address ^ (i % PAIRS * 32)) + i / PAIRS * (EXCHANGED<D> * 16);
}

// ---- a block's work

// Brings a step's keys or values; zeros for those from `count` on: what lies behind the unit may be NaN.
template <int D>
__device__ __forceinline__ void bring(unsigned target, const bf16* source, int count) {
    constexpr int ROWS_AT_ONCE = THREADS / EXCHANGED<D>;
    int row = threadIdx.x / EXCHANGED<D>, piece = threadIdx.x % EXCHANGED<D>;
    source += row * D + piece * 8;
    target += row * PITCH<D> + (piece ^ exchange<D>(row)) * 16;
#pragma unroll
    for (int r = 0; r < KEYS; r += ROWS_AT_ONCE) {
#pragma unroll
        for (int c = 0; c < D; c += 8 * EXCHANGED<D>) {
            copy_async(target + r * PITCH<D> + c * 2, source + r * D + c, row + r < count);
        }
    }
}

// Brings the block's queries.
template <int D>
__device__ void bring_queries(const Runtime& rt, unsigned char* shared, const Block& block, const View& q) {
    for (int n = threadIdx.x; n < ROWS * (D / 8); n += THREADS) {
        int r = n / (D / 8), piece = n % (D / 8);
        bring_query<D>(rt, block, q, r, piece, shared + r * PITCH<D> + (piece ^ exchange<D>(r)) * 16);
    }
}

// logits = queries * keys, given where the lane reads them
template <int D>
__device__ __forceinline__ void score(Logits& logits, unsigned queries, unsigned keys) {
#pragma unroll
    for (int t = 0; t < TILES; t++) {
#pragma unroll
        for (int c = 0; c < KEY_TILES; c++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                logits[t][c][e] = 0.0f;
            }
        }
    }
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        unsigned q[TILES][4];
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            load_matrices(q[t], columns<D>(queries, i) + t * 16 * PITCH<D>);
        }
#pragma unroll
        for (int c = 0; c < KEY_TILES; c += 2) {
            unsigned k[4];
            load_matrices(k, columns<D>(keys, i) + c * 8 * PITCH<D>);
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                multiply(logits[t][c], q[t], k[0], k[1]);
                multiply(logits[t][c + 1], q[t], k[2], k[3]);
            }
        }
    }
}

// sums += weights * values, given where the lane reads them; the next 16 keys' weights are made among the products.
template <int D>
__device__ __forceinline__ void add_values(State<D, TILES>& state, Logits& logits, unsigned values) {
    constexpr int COLUMNS = D / 16;
    Weights weights[KEYS / 16];
    weigh(logits, state, 0, 0, 8);
    round_weights(weights[0], logits, 0, 0, 8);
#pragma unroll
    for (int i = 0; i < KEYS / 16; i++) {
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            unsigned v[4];
            load_transposed(v, columns<D>(values, c) + i * 16 * PITCH<D>);
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                multiply(state.sums[t][2 * c], weights[i][t], v[0], v[1]);
                multiply(state.sums[t][2 * c + 1], weights[i][t], v[2], v[3]);
            }
            if (i + 1 < KEYS / 16) {
                weigh(logits, state, i + 1, c * 8 / COLUMNS, (c + 1) * 8 / COLUMNS);
                round_weights(weights[i + 1], logits, i + 1, c * 8 / COLUMNS, (c + 1) * 8 / COLUMNS);
            }
        }
    }
}

// Where the step from `key` on is in shared memory, which holds queries [128][D], then two times a step's keys [64][D]
// and values [64][D].
template <int D>
__device__ __forceinline__ unsigned slot_of(unsigned base, int key) {
    return base + ROWS * PITCH<D> + key / KEYS % 2 * (2 * STEP_BYTES<D>);
}

template <int D>
__device__ __forceinline__ void prefill_attend(const Runtime& rt, const bf16* staging, int capacity, int first, int n,
                                               int chunk, const View& q, const View& out) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const Block block = block_of<ROWS>(rt, first, n, chunk, blockIdx.x, blockIdx.y);
    const int warp_row = block.first_row + threadIdx.x / 32 * WARP_ROWS, lane = threadIdx.x % 32;
    const unsigned base = (unsigned)__cvta_generic_to_shared(shared);
    const bf16* keys = staging + ((size_t)block.head * 2 * capacity + block.begin) * D;
    const size_t values = (size_t)capacity * D;
    State<D, TILES> state;
    clear(state);
    // ldmatrix brings four 8 x 8 matrices: of queries and values upper and lower left, then upper and lower right; of
    // keys, which are columns of their operand, upper left and right, then lower left and right.
    const unsigned by_columns = reader<D>(lane % 16, lane / 16);
    const unsigned by_rows = reader<D>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
    const unsigned queries = base + (warp_row - block.first_row) * PITCH<D> + by_columns;
    if (block.begin < block.end) {
        bring_queries<D>(rt, shared, block, q);
        unsigned to = slot_of<D>(base, block.begin);
        bring<D>(to, keys, block.end - block.begin);
        bring<D>(to + STEP_BYTES<D>, keys + values, block.end - block.begin);
    }
    for (int key = block.begin; key < block.end; key += KEYS) {
        copies_wait();
        __syncthreads(); // and no warp reads the other slot any more
        Logits logits;
        score<D>(logits, queries, slot_of<D>(base, key) + by_rows);
        if (key + KEYS > block.end - ROWS) { // before that, every row of a block sees every key
            hide(logits, warp_row + lane / 4, rt.group, first, key + lane % 4 * 2);
        }
        raise_offsets(logits, state, [&](int t, int half, float factor) { rescale_row(state, t, half, factor); });
        keys += KEYS * D;
        if (key + KEYS < block.end) { // not sooner: here few registers are in use
            unsigned to = slot_of<D>(base, key + KEYS);
            bring<D>(to, keys, block.end - key - KEYS);
            bring<D>(to + STEP_BYTES<D>, keys + values, block.end - key - KEYS);
        }
        add_values<D>(state, logits, slot_of<D>(base, key) + STEP_BYTES<D> + by_columns);
    }
#pragma unroll
    for (int t = 0; t < TILES; t++) {
        put(rt, block, blockIdx.y, gridDim.y, out, state, t, 0, warp_row + t * 16 + lane / 4);
        put(rt, block, blockIdx.y, gridDim.y, out, state, t, 1, warp_row + t * 16 + 8 + lane / 4);
    }
}

} // namespace by_mma
