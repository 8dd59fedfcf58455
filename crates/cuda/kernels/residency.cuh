// Lanes that have part of their pages in the pool: cache rows, what lies in their frames, host memory behind them.
#pragma once

#include "runtime.cuh"

// Residency::eviction, as kv::bucketed_lru has them.
constexpr int BY_AGE = 0, BY_SCORE = 1, FADING_SCORE = 2;

constexpr int AGE_MAX = 63;
constexpr int BUCKETS = AGE_MAX + 2; // ages, and one more for empty slots

// Tags and ages of a (layer, head), by place.
struct Plane {
    unsigned* tags;
    unsigned char* ages;
};

__device__ __forceinline__ Plane plane_of(const Runtime& rt, int layer, int head) {
    const Residency& residency = rt.residency;
    size_t first = ((size_t)layer * rt.kv_heads + head) * residency.places;
    return {residency.tags + first, residency.ages + first};
}

// A lane's slots.
struct Slots {
    const unsigned* rows;
    const unsigned* groups;

    // Where a slot's tag and age are.
    __device__ __forceinline__ unsigned place(int slot) const {
        return groups[slot / GROUP_SLOTS] * GROUP_SLOTS + slot % GROUP_SLOTS;
    }
};

__device__ __forceinline__ Slots slots_of(const Runtime& rt, int lane) {
    const Residency& residency = rt.residency;
    return {residency.cache_rows + (size_t)lane * residency.max_cache_rows,
            residency.groups + (size_t)lane * residency.max_groups};
}

constexpr int PIECE = 512;      // bytes that a warp moves with one instruction
constexpr int PIECES_MOST = 8;  // that it has under way

// One warp copies `pieces` (at most 8) pieces of 512 bytes, all of them under way at once. What is read is not read
// again soon.
__device__ __forceinline__ void copy_pieces(const void* source, void* target, int pieces, int thread) {
    const uint4* from = (const uint4*)source + thread;
    uint4* to = (uint4*)target + thread;
    uint4 data[PIECES_MOST];
#pragma unroll
    for (int n = 0; n < PIECES_MOST; n++) {
        if (n < pieces) {
            data[n] = __ldcs(from + n * 32);
        }
    }
#pragma unroll
    for (int n = 0; n < PIECES_MOST; n++) {
        if (n < pieces) {
            to[n * 32] = data[n];
        }
    }
}

// Pieces of a frame: 4, 6, 8 at head_dim 64, 96, 128.
__device__ __forceinline__ int frame_pieces(const Runtime& rt) { return rt.head_dim * 4 * PAGE_TOKENS / PIECE; }
