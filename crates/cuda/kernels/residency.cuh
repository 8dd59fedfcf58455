// Lanes that have part of their pages in the pool: cache rows, what lies in their frames, host memory behind them.
#pragma once

#include "runtime.cuh"

// A page table's entry, or an end of a copy: a row of the pool, or with HOST of host memory.
typedef unsigned Place;
constexpr Place HOST = 1u << 31;
constexpr Place ROW_MASK = (1u << 26) - 1;

// A page to be copied from host memory into a frame of the pool, of the layer in work.
struct Fetch {
    unsigned host_row, row;
    int head;
};

// The cache of a lane. Pages sink..end are at home in host memory; `rows` pool rows (0: all pages are in the pool)
// are, for each (layer, head), as many slots for its own choice of those pages.
struct Cache {
    int rows, end;
    unsigned hits, misses; // pages selected below `end`, over all layers and heads
};

struct Residency {
    int pool_rows;      // stride of tags and ages
    int max_cache_rows; // of a lane
    int rows_shift;     // a chunk of host memory has 1 << rows_shift rows
    int by_score;       // who leaves: the page of the least score rather than the oldest

    Cache* caches;        // [max_lanes]
    unsigned* cache_rows; // [max_lanes][max_cache_rows]: the slots' pool rows
    unsigned* tags;       // [layers][kv_heads][pool_rows]: the page in a frame of a cache row, plus 1; 0 for none
    unsigned char* ages;  // [layers][kv_heads][pool_rows]: steps since it was selected; 0 where there is no page
    Fetch* fetches;       // [kv_heads * pool_rows], of the layer in work
    int* fetch_count;     // [2]: fetches, blocks of `retrieve` that are done; zero between layers
    bf16* const* chunks;  // host memory, rows as in the pool; in device memory, set before a row of it is used
};

constexpr int AGE_MAX = 63;
constexpr int BUCKETS = AGE_MAX + 2; // ages, and one more for empty slots

__device__ __forceinline__ size_t frame_elements(const Runtime& rt) { return 2 * PAGE_TOKENS * rt.head_dim; }

// The first frame of a row.
__device__ __forceinline__ bf16* row_at(const Runtime& rt, const Residency& residency, Place place) {
    size_t elements = (size_t)rt.layers * rt.kv_heads * frame_elements(rt);
    unsigned row = place & ROW_MASK;
    if (place & HOST) {
        unsigned in_chunk = row & ((1u << residency.rows_shift) - 1);
        return residency.chunks[row >> residency.rows_shift] + in_chunk * elements;
    }
    return rt.pool + row * elements;
}

__device__ __forceinline__ bf16* frame_at(const Runtime& rt, const Residency& residency, Place place, int layer,
                                          int head) {
    return row_at(rt, residency, place) + ((size_t)layer * rt.kv_heads + head) * frame_elements(rt);
}

// Tags and ages of a (layer, head), by pool row.
struct Plane {
    unsigned* tags;
    unsigned char* ages;
};

__device__ __forceinline__ Plane plane_of(const Runtime& rt, const Residency& residency, int layer, int head) {
    size_t first = ((size_t)layer * rt.kv_heads + head) * residency.pool_rows;
    return {residency.tags + first, residency.ages + first};
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
