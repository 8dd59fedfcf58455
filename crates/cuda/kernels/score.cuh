// What scoring and estimation share: equal shares of all indexed pages, and the instructions both use.
#pragma once

#include "common.cuh"

constexpr float LOG2_E = 1.44269504f;
constexpr float LN_2 = 0.69314718f;
constexpr float CODE_THRESHOLD = 0.996f; // backend::sketch::THRESHOLD

// 2^x, relative error 2^-22.
__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float low_bf16(unsigned pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_bf16(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }

// Pieces of `PIECE_PAGES` indexed pages that buffer row `row` has for each KV head.
template <int PIECE_PAGES>
__device__ __forceinline__ int pieces_of(const Runtime& rt, int algorithm, int row) {
    const Lane& lane = rt.lanes[rt.active[row]];
    return lane.algorithm == algorithm ? (pages_of_work(lane, INDEXED) + PIECE_PAGES - 1) / PIECE_PAGES : 0;
}

// Where something lies that buffer rows have `Count(row)` of for each KV head, in the order (buffer row, KV head,
// number): for a whole warp.
struct Place {
    int i, head, number; // of `count`
    int count;

    template <typename Count>
    __device__ __forceinline__ static long long total(const Runtime& rt, Count count_of) {
        int sum = 0;
        for (int row = threadIdx.x % 32; row < *rt.n_active; row += 32) {
            sum += count_of(row);
        }
        return (long long)__reduce_add_sync(FULL, sum) * rt.kv_heads;
    }

    // `place` is below the total.
    template <typename Count>
    __device__ __forceinline__ void find(const Runtime& rt, int place, Count count_of) {
        int thread = threadIdx.x % 32, n_active = *rt.n_active;
        i = head = number = count = 0;
        for (int base = 0, before = 0; base < n_active; base += 32) {
            int own = base + thread < n_active ? count_of(base + thread) : 0, sum = own;
            for (int at = 1; at < 32; at *= 2) {
                int other = __shfl_up_sync(FULL, sum, at);
                sum += thread >= at ? other : 0;
            }
            unsigned behind = __ballot_sync(FULL, (before + sum) * rt.kv_heads > place);
            if (behind) {
                int source = __ffs(behind) - 1;
                int rest = place - (before + __shfl_sync(FULL, sum - own, source)) * rt.kv_heads;
                count = __shfl_sync(FULL, own, source);
                i = base + source;
                head = rest / count;
                number = rest % count;
                return;
            }
            before += __shfl_sync(FULL, sum, 31);
        }
    }
};

// A warp's share of all units of the lanes that an algorithm scores. A unit is `UNIT` pieces of `PIECE_PAGES` indexed
// pages each. Scores need no merging, so shares are equal to a unit, whatever lanes' lengths are.
template <int PIECE_PAGES, int UNIT>
struct Share {
    int left;   // units to come, this one included
    Place at;   // of the unit
    int pieces; // of its buffer row, per head

    __device__ __forceinline__ void start(const Runtime& rt, int algorithm, int worker, int workers) {
        auto units = [&](int row) { return units_of(pieces_of<PIECE_PAGES>(rt, algorithm, row)); };
        long long total = Place::total(rt, units);
        int first = (int)(total * worker / workers);
        left = (int)(total * (worker + 1) / workers) - first;
        if (left > 0) {
            at.find(rt, first, units);
            pieces = pieces_of<PIECE_PAGES>(rt, algorithm, at.i);
        }
    }

    __device__ __forceinline__ void next(const Runtime& rt, int algorithm) {
        left--;
        at.number++;
        if (left <= 0 || at.number < at.count) {
            return;
        }
        at.number = 0;
        if (++at.head < rt.kv_heads) {
            return;
        }
        at.head = 0;
        do {
            at.i++;
            pieces = pieces_of<PIECE_PAGES>(rt, algorithm, at.i);
        } while (pieces == 0);
        at.count = units_of(pieces);
    }

    __device__ __forceinline__ static int units_of(int pieces) { return (pieces + UNIT - 1) / UNIT; }
};

// Frames of one layer and KV head: as `frame`, with one multiplication for a row.
template <int D>
struct Frames {
    const char* first;
    unsigned row_bytes;

    __device__ __forceinline__ Frames(const Runtime& rt, int layer, int head) {
        constexpr unsigned BYTES = 4 * PAGE_TOKENS * D;
        first = (const char*)rt.pool + ((size_t)layer * rt.kv_heads + head) * BYTES;
        row_bytes = (unsigned)(rt.layers * rt.kv_heads) * BYTES;
    }

    __device__ __forceinline__ const char* at(unsigned row) const { return first + (size_t)row * row_bytes; }
};

// A warp's look into the summary row table of a buffer row's lane: 64 rows at once, so that frames do not wait for
// theirs.
struct SummaryRows {
    int i = -1;
    unsigned block = 0;           // of 32 rows
    unsigned words = 0, next = 0; // of blocks `block` and `block + 1`, one row a thread

    // Makes rows `number` and, at least, the 32 behind it known; for the whole warp.
    __device__ __forceinline__ void seek(const Runtime& rt, int row, unsigned number) {
        if (row == i && number / 32 == block) {
            return;
        }
        const unsigned* table = rt.summary_rows + (size_t)rt.active[row] * rt.max_pages;
        unsigned mine = number / 32 * 32 + threadIdx.x % 32, last = rt.max_pages - 1;
        words = row == i && number / 32 == block + 1 ? next : table[min(mine, last)];
        next = table[min(mine + 32, last)];
        i = row;
        block = number / 32;
    }

    // Of a number that may differ between threads.
    __device__ __forceinline__ unsigned at(unsigned number) const {
        unsigned first = __shfl_sync(FULL, words, number % 32), second = __shfl_sync(FULL, next, number % 32);
        return number / 32 == block ? first : second;
    }
};

// Asks for a line to be in L2.
__device__ __forceinline__ void prefetch(const void* line) { asm volatile("prefetch.global.L2 [%0];" ::"l"(line)); }
