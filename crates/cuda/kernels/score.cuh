// What scoring and estimation share: equal shares of all indexed pages, and the instructions both use.
#pragma once

#include "instructions.cuh"
#include "runtime.cuh"

constexpr float LOG2_E = 1.44269504f;
constexpr float CODE_THRESHOLD = 0.996f; // backend::sketch::THRESHOLD

__device__ __forceinline__ float low_bf16(unsigned pair) { return __uint_as_float(pair << 16); }
__device__ __forceinline__ float high_bf16(unsigned pair) { return __uint_as_float(pair & 0xffff0000u); }

// A warp's share of all units of the lanes that an algorithm scores, in the order (buffer row, KV head, unit). A unit
// is `UNIT` pieces of `PIECE_PAGES` indexed pages each. Scores need no merging, so shares are equal to a unit, whatever
// lanes' lengths are.
template <int PIECE_PAGES, int UNIT>
struct Share {
    int left;        // units to come, this one included
    int i, head;
    int unit, units; // of this head of buffer row i
    int pieces;      // of buffer row i, for each head

    // Worker `worker` of `workers`; for a whole warp.
    __device__ __forceinline__ void start(const Runtime& rt, int algorithm, int worker, int workers) {
        long long all = count(rt, algorithm);
        int first = (int)(all * worker / workers);
        seek(rt, algorithm, first, (int)(all * (worker + 1) / workers) - first);
    }

    // Units of all lanes and heads; for a whole warp.
    __device__ __forceinline__ static int count(const Runtime& rt, int algorithm) {
        int total = 0;
        for (int row = threadIdx.x % 32; row < *rt.n_active; row += 32) {
            total += units_of(pieces_of(rt, algorithm, row));
        }
        return __reduce_add_sync(FULL, total) * rt.kv_heads;
    }

    // `count` units from unit `first` of all on; for a whole warp.
    __device__ __forceinline__ void seek(const Runtime& rt, int algorithm, int first, int count) {
        int thread = threadIdx.x % 32, n_active = *rt.n_active;
        left = count;
        i = head = unit = units = pieces = 0;
        for (int base = 0, before = 0; left > 0; base += 32) {
            int own_pieces = base + thread < n_active ? pieces_of(rt, algorithm, base + thread) : 0;
            int own = units_of(own_pieces), sum = own;
            for (int at = 1; at < 32; at *= 2) {
                int other = __shfl_up_sync(FULL, sum, at);
                sum += thread >= at ? other : 0;
            }
            unsigned behind = __ballot_sync(FULL, (before + sum) * rt.kv_heads > first);
            if (behind) {
                int source = __ffs(behind) - 1;
                int rest = first - (before + __shfl_sync(FULL, sum - own, source)) * rt.kv_heads;
                pieces = __shfl_sync(FULL, own_pieces, source);
                units = units_of(pieces);
                i = base + source;
                head = rest / units;
                unit = rest % units;
                break;
            }
            before += __shfl_sync(FULL, sum, 31);
        }
    }

    __device__ __forceinline__ void next(const Runtime& rt, int algorithm) {
        left--;
        unit++;
        if (left <= 0 || unit < units) {
            return;
        }
        unit = 0;
        if (++head < rt.kv_heads) {
            return;
        }
        head = 0;
        do {
            i++;
            pieces = pieces_of(rt, algorithm, i);
        } while (pieces == 0);
        units = units_of(pieces);
    }

    __device__ __forceinline__ static int units_of(int pieces) { return (pieces + UNIT - 1) / UNIT; }

    __device__ __forceinline__ static int pieces_of(const Runtime& rt, int algorithm, int row) {
        const Lane& lane = rt.lanes[rt.active[row]];
        return lane.algorithm == algorithm ? pages_of_work(lane, INDEXED) / PIECE_PAGES : 0;
    }
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

// The same address, of which the compiler knows nothing: it then adds constants in the load instructions.
template <typename T>
__device__ __forceinline__ const T* plain(const T* address) {
    asm("" : "+l"(address));
    return address;
}

// Asks for a line to be in L2.
__device__ __forceinline__ void prefetch(const void* line) { asm volatile("prefetch.global.L2 [%0];" ::"l"(line)); }
