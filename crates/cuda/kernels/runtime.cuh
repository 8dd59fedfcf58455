// What every kernel shares: the runtime as plain data (its Rust mirrors are in src/abi.rs, held equal by size checks),
// lanes, selection arithmetic, views of activations, schedules of work.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

typedef __nv_bfloat16 bf16;

constexpr int PAGE_TOKENS = 8;      // kv::PAGE_TOKENS
constexpr int SKETCH_TOKENS = 48;   // kv::geometry::SKETCH_TOKENS
constexpr int GROUP_PAGES = SKETCH_TOKENS / PAGE_TOKENS;
constexpr int GROUP_SLOTS = 32;     // slots::GROUP_SLOTS
constexpr int GROUP_MAX = 8;        // query heads of a KV head
constexpr int ALGORITHMS_MAX = 8;
constexpr int TOP_MAX = 32;         // most likely tokens that a step can report
constexpr unsigned FULL = 0xffffffffu;

// An activation array from one of its rows on; rows are `cols` elements, f32 or bf16.
struct View {
    void* data;
    int cols;
    int is_bf16;
};

// Attention over a part of the keys: normalised output [rows][q_heads * head_dim], log-sum-exp [rows][q_heads].
struct Partial {
    float* output;
    float* lse;
};

// kv::Selection.
struct Selection {
    int unit;         // tokens of an Index unit
    int sink_pages;
    int floor_pages;
    int min_context;
    long long window;
    double budget;
};

struct Sampling {
    float temperature, top_p, min_p, repetition, presence, frequency;
    int top_k, top_count, min_tokens, choice;
    unsigned seed_low, seed_high;
    int penalised;    // counts[lane] is kept
    int biased;       // bias[lane] is set
    int suppresses;   // suppressed[lane] is set
    int reserved;
};

// One running sequence.
struct Lane {
    int algorithm;
    int len;            // tokens with K and V in rows; in a step the current one included
    int token;          // the next step's input
    int forced;         // overrides the step's choice; -1 for none
    int generated;
    int prompt_outputs; // outputs to come that are prompt
    int masked;         // mask[lane] holds for the next choice
    int mass_count;
    Selection selection;
    Sampling sampling;
    double mass;
};

// What a lane's step gives back; lies in pinned memory.
struct LaneOutput {
    int lane;
    int token;
    float logprob;
    int exact_tokens;
    float mass;         // mean attention mass; -1 where not measured
    unsigned hits, misses; // selected pages of host memory, over layers and KV heads
    int top_count;
    int top_tokens[TOP_MAX];
    float top_logprobs[TOP_MAX];
};

// Work of one kind in a step, cut into items of `chunk` pages of one lane; every item is worked on once per KV head.
// first[i] is the first item of the lane in buffer row i; first[n_active] = items.
struct Schedule {
    int chunk;
    int items;
    int first[1];
};

enum Work {
    ROWS = 0,     // pages of each lane's KV row table
    LIST = 1,     // entries of each lane's page list
    INDEXED = 2,  // indexed pages of lanes that select; chunks are multiples of 48 pages
    WORKS = 3,
};

// A page to be copied from host memory into a frame of the pool, of the layer in work.
struct Fetch {
    unsigned host_row, row;
    int head;
};

// The cache of a lane. Pages sink..end are at home in host memory; `rows` pool rows (0: all pages are in the pool)
// are, for each (layer, head), as many slots for its own choice of those pages.
struct Cache {
    int rows, end;
    unsigned hits, misses; // pages selected below `end` in this step, over all layers and heads
};

// What lanes have that keep part of their pages in host memory.
struct Residency {
    int places;         // stride of tags and ages
    int max_cache_rows; // of a lane
    int eviction;       // 0 by age, 1 by score, 2 by fading score: kv::bucketed_lru
    int max_groups;     // of a lane

    Cache* caches;        // [max_lanes]
    unsigned* cache_rows; // [max_lanes][max_cache_rows]: the slots' pool rows
    unsigned* groups;     // [max_lanes][max_groups]: slot s has place groups[s / GROUP_SLOTS] * GROUP_SLOTS + s % ...
    unsigned* tags;       // [layers][kv_heads][places]: the page in a slot, plus 1; 0 for none
    unsigned char* ages;  // [layers][kv_heads][places]: see kv::bucketed_lru
    Fetch* fetches;       // [kv_heads * pool_rows], of the layer in work
    int* fetch_count;     // [2]: fetches, blocks of `retrieve` that are done; zero between layers
    bf16* host;           // rows of host memory, as in the pool; null where there are none
};

struct Runtime {
    int layers, kv_heads, q_heads, group, head_dim, vocab, max_lanes;
    int max_pages;      // of a sequence: width of row tables, page lists and scores
    int bitmap_words;   // of `selected`: max_pages / 32, rounded up
    int mask_words;     // of a token mask: vocab / 32, rounded up
    int schedule_words; // ints of one Schedule
    int targets[WORKS]; // items times KV heads that each kind of work is cut into, about
    int max_tokens;     // max_pages * 8
    int rope_positions;

    bf16* pool;             // [rows][layers][kv_heads] frames: K [8][d], V [8][d]
    Lane* lanes;            // [max_lanes]
    unsigned* kv_rows;      // [max_lanes][max_pages]
    unsigned* summary_rows; // [max_lanes][max_pages]
    int* n_active;          // [1]
    int* active;            // [max_lanes]: lane of each buffer row, ascending
    int* schedules;         // [ALGORITHMS_MAX][WORKS][schedule_words]
    float* rope;            // [rope_positions][d]: cosines [d / 2], sines [d / 2]

    float* page_scores;     // [max_lanes][q_heads][max_pages]
    float* reduced;         // [max_lanes][kv_heads][max_pages]
    __half* token_logits;   // [max_lanes][q_heads][max_tokens]
    float* rotated_q;       // [max_lanes][q_heads][d]
    unsigned* page_list;    // [max_lanes][kv_heads][max_pages]
    int* page_list_len;     // [max_lanes][kv_heads]
    unsigned* selected;     // [max_lanes][kv_heads][bitmap_words]
    float* splits;          // [items * kv_heads][group][d + 2]: output, lse, one spare
    int* arrivals;          // [max_lanes][kv_heads]: parts of a head that are done; zero between ops

    int* counts;            // [max_lanes][vocab]: occurrences in the completion; bit 30 is set for tokens of the prompt
    float* bias;            // [max_lanes][vocab]
    unsigned* suppressed;   // [max_lanes][mask_words]
    unsigned* mask;         // [max_lanes][mask_words]
    LaneOutput* output;     // [2][max_lanes], pinned: of even and odd steps
    int* step;              // [1]: number of the step in work
    char* sample_scratch;   // of `sample` and `score_tokens`: see logits.cuh
    Residency residency;
};

constexpr int IN_PROMPT = 1 << 30;

// ---- overlap of a kernel with the one before it (programmatic dependent launch, from compute capability 9.0 on)

// Everything that the kernels before this one wrote may be read from here on. A kernel that is launched with overlap
// (OVERLAPPING in src/kernels.rs) calls this before it touches what another kernel writes.
__device__ __forceinline__ void wait_for_predecessor() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The end of a kernel that did not wait where it began: its end is then that of its predecessor, too.
__device__ __forceinline__ void end_beside(bool beside) {
    if (beside && blockIdx.x == 0 && blockIdx.y == 0) {
        wait_for_predecessor();
    }
}

// The next kernel's blocks may start where there is room: they wait for this one before they read its results. Behind
// this kernel's own wait, they may read at once what was there before it.
__device__ __forceinline__ void let_successor_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// ---- views

__device__ __forceinline__ float load(const View& v, size_t row, int col) {
    size_t at = row * v.cols + col;
    return v.is_bf16 ? __bfloat162float(((const bf16*)v.data)[at]) : ((const float*)v.data)[at];
}

__device__ __forceinline__ void store(const View& v, size_t row, int col, float x) {
    size_t at = row * v.cols + col;
    if (v.is_bf16) {
        ((bf16*)v.data)[at] = __float2bfloat16_rn(x);
    } else {
        ((float*)v.data)[at] = x;
    }
}

// ---- pages

__host__ __device__ __forceinline__ int pages_of(int tokens) { return (tokens + PAGE_TOKENS - 1) / PAGE_TOKENS; }

// Set in the number of a row of host memory.
constexpr unsigned HOST = 1u << 31;

// A row's first frame, in the pool or in host memory.
__device__ __forceinline__ bf16* row_at(const Runtime& rt, unsigned row) {
    size_t elements = (size_t)rt.layers * rt.kv_heads * (2 * PAGE_TOKENS * rt.head_dim);
    return (row & HOST ? rt.residency.host : rt.pool) + (row & ~HOST) * elements;
}

// K [8][d], then V [8][d], of a page at home anywhere.
__device__ __forceinline__ bf16* home_frame(const Runtime& rt, unsigned row, int layer, int head) {
    return row_at(rt, row) + ((size_t)layer * rt.kv_heads + head) * (2 * PAGE_TOKENS * rt.head_dim);
}

// K [8][d], then V [8][d], of a page in the pool (or a summary frame).
__device__ __forceinline__ bf16* frame(const Runtime& rt, unsigned row, int layer, int head) {
    size_t number = ((size_t)row * rt.layers + layer) * rt.kv_heads + head;
    return rt.pool + number * (2 * PAGE_TOKENS * rt.head_dim);
}

// A page entry: row:26 | first:3 | count-1:3.
__device__ __forceinline__ unsigned page_entry(unsigned row, int first, int count) {
    return row << 6 | (unsigned)first << 3 | (unsigned)(count - 1);
}
// The entry of a whole page that is on its way into a row: between `resolve` and `attend`, which alone reads it so.
__device__ __forceinline__ unsigned coming_entry(unsigned row) { return row << 6 | 63; }
__device__ __forceinline__ bool is_coming(unsigned entry) { return (entry & 63) == 63; }
__device__ __forceinline__ unsigned entry_row(unsigned entry) { return entry >> 6; }
__device__ __forceinline__ int entry_first(unsigned entry) { return entry >> 3 & 7; }
__device__ __forceinline__ int entry_count(unsigned entry) { return (entry & 7) + 1; }

// ---- selection: the arithmetic of kv/src/selection.rs

// What a step at `len` selects: `pages` is false where every token is exact.
struct Selected {
    bool pages;
    int sink, indexed, k;
};

__device__ __forceinline__ int indexed_pages(const Selection& s, int len) {
    long long rest = (long long)len - s.window - 2;
    return rest <= 0 ? 0 : (int)(rest / s.unit) * s.unit / PAGE_TOKENS;
}

__device__ __forceinline__ Selected selected_at(const Selection& s, int len) {
    Selected out = {false, s.sink_pages, indexed_pages(s, len), 0};
    if (len < s.min_context || out.indexed <= out.sink) {
        return out;
    }
    out.pages = true;
    long long share = (long long)floor(s.budget * out.indexed + 0.5);
    long long k = share > s.floor_pages ? share : s.floor_pages;
    k = k > 1 ? k : 1;
    int most = out.indexed - out.sink;
    out.k = k < most ? (int)k : most;
    return out;
}

// Entries of the page list of a step at `len`.
__device__ __forceinline__ int listed_pages(const Selection& s, int len) {
    Selected at = selected_at(s, len);
    return pages_of(len) - (at.pages ? at.indexed - at.sink - at.k : 0);
}

__device__ __forceinline__ int exact_tokens(const Selection& s, int len) {
    Selected at = selected_at(s, len);
    return len - (at.pages ? (at.indexed - at.sink - at.k) * PAGE_TOKENS : 0);
}

// ---- schedules

// Pages `first..end` of buffer row `i` (lane `lane`), part `part` of `parts` of that lane.
struct Item {
    int i, lane, first, end, part, parts;
};

__device__ __forceinline__ const Schedule* schedule(const Runtime& rt, int algorithm, int work) {
    return (const Schedule*)(rt.schedules + (size_t)(algorithm * WORKS + work) * rt.schedule_words);
}

// Pages of a lane's work of a kind.
__device__ __forceinline__ int pages_of_work(const Lane& lane, int work) {
    if (work == ROWS) {
        return pages_of(lane.len);
    }
    if (work == LIST) {
        return listed_pages(lane.selection, lane.len);
    }
    Selected at = selected_at(lane.selection, lane.len);
    return at.pages ? at.indexed : 0;
}

// Item `number` (below `s->items`) of a schedule.
__device__ __forceinline__ Item item_of(const Runtime& rt, const Schedule* s, int work, int number) {
    int low = 0, high = *rt.n_active - 1;
    while (low < high) {
        int middle = (low + high + 1) / 2;
        if (s->first[middle] <= number) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    Item item;
    item.i = low;
    item.lane = rt.active[low];
    item.part = number - s->first[low];
    item.parts = s->first[low + 1] - s->first[low];
    int pages = pages_of_work(rt.lanes[item.lane], work);
    item.first = item.part * s->chunk;
    item.end = item.first + s->chunk < pages ? item.first + s->chunk : pages;
    return item;
}

// ---- Index units

// What an Index op works on. Of one sequence: whole units of `unit` pages in pages first..end of these tables. Of lanes
// (kv_rows is null): for each active lane of `algorithm`, what becomes indexed at its next step, at most one unit.
struct Units {
    const unsigned* kv_rows;
    const unsigned* summary_rows;
    int first, end;
    int algorithm;
};

// One unit: pages first..end of a sequence's tables; empty where there is nothing to do.
struct Unit {
    const unsigned* kv_rows;
    const unsigned* summary_rows;
    int first, end;
};

// Unit `number` of `units`, `unit_pages` pages each: block x of an Index kernel.
__device__ __forceinline__ Unit unit_of(const Runtime& rt, const Units& units, int number, int unit_pages) {
    Unit unit = {units.kv_rows, units.summary_rows, 0, 0};
    if (units.kv_rows) {
        unit.first = units.first + number * unit_pages;
        unit.end = unit.first + unit_pages < units.end ? unit.first + unit_pages : units.end;
        return unit;
    }
    if (number >= *rt.n_active) {
        return unit;
    }
    int at = rt.active[number];
    const Lane& lane = rt.lanes[at];
    if (lane.algorithm != units.algorithm) {
        return unit;
    }
    unit.kv_rows = rt.kv_rows + (size_t)at * rt.max_pages;
    unit.summary_rows = rt.summary_rows + (size_t)at * rt.max_pages;
    unit.first = indexed_pages(lane.selection, lane.len);
    unit.end = indexed_pages(lane.selection, lane.len + 1);
    return unit;
}

// ---- reductions

__device__ __forceinline__ float warp_sum(float x) {
    for (int at = 16; at > 0; at /= 2) {
        x += __shfl_xor_sync(FULL, x, at);
    }
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
    for (int at = 16; at > 0; at /= 2) {
        x = fmaxf(x, __shfl_xor_sync(FULL, x, at));
    }
    return x;
}
