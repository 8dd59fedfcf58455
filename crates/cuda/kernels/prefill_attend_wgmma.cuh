// Prefill attention by wgmma, for compute capability 9.0 and heads of 64 and 128.
//
// A block stays on its multiprocessor and takes one tile of rows after another. Its first warpgroup brings: one thread
// asks the tensor memory accelerator for steps of keys and values, three warps bring queries. Each other warpgroup has
// 64 rows of the tile, with their sums and a step's logits in registers. It asks for the next step's logits and for
// this step's values at once, and makes the next weights while the latter are added; meanwhile another warpgroup's
// products run too. That warpgroups take turns in asking was tried, and gains nothing.
//
// Estimate, 32 query heads of 128, 8 KV heads, 32768 tokens: 8.8 TFLOP, 12.2 ms at the 718 TFLOP/s of a large product.
// A step of 128 rows and 128 keys is 2048 clocks of products; 1024 clocks of exponentials and 600 of issue lie beside
// them. 64 KiB of keys and values come from the L2 cache in that time, 4.7 TB/s over all multiprocessors. Measured
// (H100): 12.8 to 13.0 ms in strides of 4096 tokens, 678 to 687 TFLOP/s. Heads of 64 do half the products for the same
// exponentials: about 510 TFLOP/s.
#pragma once

#include "hopper.cuh"
#include "prefill_attend.cuh"

namespace by_wgmma {

constexpr int WARPGROUP = 128;
constexpr int KEYS = 128; // of a step
constexpr int STAGES = 3; // steps in shared memory

// Warpgroups that compute, 64 rows each: as many as have room for their sums.
template <int D>
constexpr int COMPUTE = D == 64 ? 3 : 2;

template <int D>
constexpr int THREADS = WARPGROUP * (1 + COMPUTE<D>);

template <int D>
constexpr int ROWS = 64 * COMPUTE<D>;

// Registers of a thread that brings and of one that computes: together what all threads begin with, a multiple of 8 of
// the 65536 / THREADS that there are.
template <int D>
constexpr int FEW = COMPUTE<D> == 3 ? 32 : 40;
template <int D>
constexpr int MANY = COMPUTE<D> == 3 ? 160 : 232;

// ---- shared memory: queries [D / 64][ROWS][64], then keys and values, each STAGES times [D / 64][KEYS][64], then
// barriers

template <int D>
constexpr int QUERY_BYTES = ROWS<D> * D * 2;

template <int D>
constexpr int STEP_BYTES = KEYS * D * 2;

template <int D>
constexpr int BARRIERS_AT = QUERY_BYTES<D> + 2 * STAGES * STEP_BYTES<D>;

constexpr int HALF_ROW = 128; // bytes of a row of 64 elements

// Addresses in shared memory. What is full has arrived, what is empty has been read.
template <int D>
struct Shared {
    unsigned base;

    __device__ __forceinline__ unsigned keys(int slot) const { return base + QUERY_BYTES<D> + slot * STEP_BYTES<D>; }
    __device__ __forceinline__ unsigned values(int slot) const { return keys(STAGES + slot); }
    __device__ __forceinline__ unsigned barrier(int i) const { return base + BARRIERS_AT<D> + i * 8; }
    __device__ __forceinline__ unsigned queries_full() const { return barrier(0); }
    __device__ __forceinline__ unsigned queries_empty() const { return barrier(1); }
    __device__ __forceinline__ unsigned keys_full(int slot) const { return barrier(2 + slot); }
    __device__ __forceinline__ unsigned keys_empty(int slot) const { return barrier(2 + STAGES + slot); }
    __device__ __forceinline__ unsigned values_full(int slot) const { return barrier(2 + 2 * STAGES + slot); }
    __device__ __forceinline__ unsigned values_empty(int slot) const { return barrier(2 + 3 * STAGES + slot); }
};

// Where the next step is, in a ring of STAGES slots, and the parity of how often the ring came round.
struct Ring {
    int slot = 0, parity = 0;

    __device__ __forceinline__ void next() {
        slot++;
        if (slot == STAGES) {
            slot = 0;
            parity ^= 1;
        }
    }
};

// The tiles of a block: one in each round of `gridDim.x`, which every other round deals out backwards. Tiles are sorted
// by length, so that blocks get about the same in two rounds.
template <int D>
struct Tiles {
    const Runtime& rt;
    int first, n, chunk, parts;
    unsigned blocks, part = 0, round = 0;

    __device__ __forceinline__ Tiles(const Runtime& rt, int first, int n, int chunk, int parts)
        : rt(rt), first(first), n(n), chunk(chunk), parts(parts) {
        blocks = (n * rt.group + ROWS<D> - 1) / ROWS<D> * rt.kv_heads;
    }

    __device__ __forceinline__ bool next(Block& block) {
        unsigned at = round % 2 ? gridDim.x - 1 - blockIdx.x : blockIdx.x, number = round * gridDim.x + at;
        round++;
        if (number >= blocks * parts) {
            return false;
        }
        part = number / blocks;
        block = block_of<ROWS<D>>(rt, first, n, chunk, number % blocks, part);
        return true;
    }
};

// ---- who brings

// One thread: steps of keys and values. Values come one step behind keys, as they are asked for.
template <int D>
__device__ __forceinline__ void bring_steps(const Shared<D>& shared, const TensorMap& staged, Tiles<D> tiles) {
    Block block = {};
    Ring k, v;
    auto bring_keys = [&](int key) {
        wait_for(shared.keys_empty(k.slot), k.parity ^ 1);
        arrive_and_expect(shared.keys_full(k.slot), STEP_BYTES<D>);
        copy_tile(shared.keys(k.slot), staged, 0, key, 0, 2 * block.head, shared.keys_full(k.slot));
        k.next();
    };
    auto bring_values = [&](int key) {
        wait_for(shared.values_empty(v.slot), v.parity ^ 1);
        arrive_and_expect(shared.values_full(v.slot), STEP_BYTES<D>);
        copy_tile(shared.values(v.slot), staged, 0, key, 0, 2 * block.head + 1, shared.values_full(v.slot));
        v.next();
    };
    while (tiles.next(block)) {
        for (int key = block.begin; key < block.end; key += KEYS) {
            bring_keys(key);
            if (key > block.begin) {
                bring_values(key - KEYS);
            }
        }
        if (block.begin < block.end) {
            bring_values(block.begin + (block.end - block.begin - 1) / KEYS * KEYS);
        }
    }
}

constexpr int QUERY_THREADS = 96;

// Three warps: queries of a tile, once those of the tile before have been read for the last time.
template <int D>
__device__ __forceinline__ void bring_queries(const Shared<D>& shared, unsigned char* memory, const View& q,
                                              Tiles<D> tiles) {
    Block block = {};
    int parity = 1;
    while (tiles.next(block)) {
        if (block.begin >= block.end) {
            continue;
        }
        wait_for(shared.queries_empty(), parity);
        parity ^= 1;
        for (int i = threadIdx.x % WARPGROUP - 32; i < ROWS<D> * (D / 8); i += QUERY_THREADS) {
            int row = i / (D / 8), piece = i % (D / 8);
            unsigned char* half = memory + piece / 8 * (ROWS<D> * HALF_ROW);
            bring_query<D>(tiles.rt, block, q, row, piece, half + row * HALF_ROW + (piece % 8 ^ row % 8) * 16);
        }
        copies_wait();
        stores_ready();
        arrive(shared.queries_full());
    }
}

// ---- who computes

typedef float Logits[1][KEYS / 8][4];
typedef unsigned Weights[KEYS / 16][1][4];

// Asks for logits = queries * keys.
template <int D>
__device__ __forceinline__ void score(Logits& logits, unsigned queries, unsigned keys) {
    unsigned long long q = operand(queries, 0), k = operand(keys, 0);
    multiply<false>(logits[0], q, k);
#pragma unroll
    for (int i = 1; i < D / 16; i++) {
        multiply<true>(logits[0], further(q, i / 4 * ROWS<D> * HALF_ROW + i % 4 * 32),
                       further(k, i / 4 * KEYS * HALF_ROW + i % 4 * 32));
    }
    products_end();
}

// Asks for sums += weights * values.
template <int D>
__device__ __forceinline__ void add_values(State<D, 1>& state, const Weights& weights, unsigned values) {
    unsigned long long v = operand(values, KEYS * HALF_ROW);
#pragma unroll
    for (int i = 0; i < KEYS / 16; i++) {
        multiply(state.sums[0], weights[i][0], further(v, i * 16 * HALF_ROW));
    }
    products_end();
}

// Tells the bringers that this warp has read.
__device__ __forceinline__ void release(unsigned barrier) {
    if (threadIdx.x % 32 == 0) {
        arrive(barrier);
    }
}

template <int D>
__device__ __forceinline__ void compute(const Shared<D>& shared, const Runtime& rt, const View& out, Tiles<D> tiles,
                                        int group) {
    const int lane = threadIdx.x % 32, warp_row = group * 64 + threadIdx.x / 32 % 4 * 16 + lane / 4;
    const unsigned queries = shared.base + group * 64 * HALF_ROW;
    Block block = {};
    Ring k, v;
    int parity = 0;
    while (tiles.next(block)) {
        const int row = block.first_row + warp_row;
        // Keys before this one are seen by every row of the warp.
        const int all = tiles.first + (row - lane / 4) / rt.group + 1;
        State<D, 1> state;
        Logits logits;
        Weights weights;
        float factors[2];
        clear(state);
        auto make_weights = [&](int key) {
            if (key + KEYS > all) {
                hide(logits, row, rt.group, tiles.first, key + lane % 4 * 2);
            }
            bool raised = raise_offsets(logits, state, [&](int, int half, float factor) { factors[half] = factor; });
#pragma unroll
            for (int i = 0; i < KEYS / 16; i++) {
                weigh(logits, state, i, 0, 4);
            }
            return raised;
        };
        auto round_all = [&] {
#pragma unroll
            for (int i = 0; i < KEYS / 16; i++) {
                round_weights(weights[i], logits, i, 0, 4);
            }
        };
        if (block.begin < block.end) {
            wait_for(shared.queries_full(), parity);
            parity ^= 1;
            wait_for(shared.keys_full(k.slot), k.parity);
            products_begin();
            score<D>(logits, queries, shared.keys(k.slot));
            products_wait<0>(logits[0]);
            release(shared.keys_empty(k.slot));
            k.next();
            make_weights(block.begin);
            round_all();
        }
        for (int key = block.begin + KEYS; key < block.end; key += KEYS) {
            wait_for(shared.keys_full(k.slot), k.parity);
            products_begin();
            score<D>(logits, queries, shared.keys(k.slot));
            wait_for(shared.values_full(v.slot), v.parity);
            add_values<D>(state, weights, shared.values(v.slot));
            products_wait<1>(logits[0]);
            release(shared.keys_empty(k.slot));
            k.next();
            bool raised = make_weights(key);
            products_wait<0>(state.sums[0]);
            not_sooner(logits[0]);
            release(shared.values_empty(v.slot));
            v.next();
            if (raised) {
                rescale_row(state, 0, 0, factors[0]);
                rescale_row(state, 0, 1, factors[1]);
            }
            round_all();
        }
        if (block.begin < block.end) {
            release(shared.queries_empty());
            wait_for(shared.values_full(v.slot), v.parity);
            products_begin();
            add_values<D>(state, weights, shared.values(v.slot));
            products_wait<0>(state.sums[0]);
            release(shared.values_empty(v.slot));
            v.next();
        }
        put(rt, block, tiles.part, tiles.parts, out, state, 0, 0, row);
        put(rt, block, tiles.part, tiles.parts, out, state, 0, 1, row + 8);
    }
}

// ----

template <int D>
__device__ __forceinline__ void prefill_attend(const Runtime& rt, const TensorMap& staged, int first, int n, int chunk,
                                               int parts, const View& q, const View& out) {
    extern __shared__ __align__(1024) unsigned char memory[];
    const Shared<D> shared = {(unsigned)__cvta_generic_to_shared(memory)};
    if (threadIdx.x == 0) {
        map_soon(staged);
        barrier_init(shared.queries_full(), QUERY_THREADS);
        barrier_init(shared.queries_empty(), 4 * COMPUTE<D>);
        for (int slot = 0; slot < STAGES; slot++) {
            barrier_init(shared.keys_full(slot), 1);
            barrier_init(shared.values_full(slot), 1);
            barrier_init(shared.keys_empty(slot), 4 * COMPUTE<D>);
            barrier_init(shared.values_empty(slot), 4 * COMPUTE<D>);
        }
        barriers_ready();
    }
    __syncthreads();
    Tiles<D> tiles(rt, first, n, chunk, parts);
    const int group = __shfl_sync(FULL, threadIdx.x / WARPGROUP, 0); // the same in all threads, for the compiler too
    if (group == 0) {
        give_registers<FEW<D>>();
        int warp = __shfl_sync(FULL, threadIdx.x / 32, 0);
        if (warp > 0) {
            bring_queries<D>(shared, memory, q, tiles);
        } else if (threadIdx.x == 0) {
            bring_steps<D>(shared, staged, tiles);
        }
    } else {
        take_registers<MANY<D>>();
        compute<D>(shared, rt, out, tiles, group - 1);
    }
}

} // namespace by_wgmma
