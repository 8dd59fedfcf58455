// What a step begins with: the host's input is applied to lanes and tables, work is scheduled, masks are copied.
#include "runtime.cuh"

// The head of a step's input in pinned memory. Arrays follow, for W lanes (max_lanes, rounded up to 4), in this order:
// active [W], rows [2 W][lane, table, index, row], forced [W][lane, token], masked [W], mask words [W][mask_words].
struct StepHead {
    int n_active, n_rows, n_forced, n_masked;
};

__device__ __forceinline__ int width_of(const Runtime& rt) { return (rt.max_lanes + 3) / 4 * 4; }

// The input of the step that begins: slots take turns, and `*rt.step` is the number of the step before.
__device__ __forceinline__ const int* slot_of(const Runtime& rt, const char* slots, int slot_bytes, int step) {
    return (const int*)(slots + (size_t)(step & 1) * slot_bytes);
}

// Pages of a lane's work of a kind, 0 where another algorithm serves it.
__device__ __forceinline__ int pages_for(const Runtime& rt, int algorithm, int work, int lane) {
    const Lane& of = rt.lanes[lane];
    return of.algorithm == algorithm ? pages_of_work(of, work) : 0;
}

__device__ __forceinline__ int divide_up(long long a, long long b) { return (int)((a + b - 1) / b); }

// The smallest chunk, in granules, with which all items of a KV head have a block at once: what does not fit would run
// as a second wave. By bisection, the lanes spread over a warp.
__device__ int fitting_chunk(const Runtime& rt, int algorithm, int work, int granule, int n_active, const int* active) {
    int thread = threadIdx.x % 32, lanes = 0, longest = 0;
    long long total = 0;
    for (int i = thread; i < n_active; i += 32) {
        int pages = pages_for(rt, algorithm, work, active[i]);
        lanes += pages > 0;
        longest = max(longest, pages);
        total += pages;
    }
    for (int at = 16; at > 0; at /= 2) {
        lanes += __shfl_xor_sync(FULL, lanes, at);
        longest = max(longest, __shfl_xor_sync(FULL, longest, at));
        total += __shfl_xor_sync(FULL, total, at);
    }
    int slots = max(1, rt.targets[work] / rt.kv_heads);
    slots *= max(1, divide_up(lanes, slots));
    int low = max(1, divide_up(divide_up(total, slots), granule)), high = max(low, divide_up(longest, granule));
    while (low < high) {
        int middle = (low + high) / 2, items = 0;
        for (int i = thread; i < n_active; i += 32) {
            items += divide_up(pages_for(rt, algorithm, work, active[i]), middle * granule);
        }
        for (int at = 16; at > 0; at /= 2) {
            items += __shfl_xor_sync(FULL, items, at);
        }
        if (items <= slots) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

// Items of one (algorithm, kind): one warp.
__device__ void make_schedule(const Runtime& rt, int algorithm, int work, int n_active, const int* active) {
    int thread = threadIdx.x % 32, granule = work == INDEXED ? 48 : 8;
    Schedule* s = (Schedule*)schedule(rt, algorithm, work);
    int chunk = granule * fitting_chunk(rt, algorithm, work, granule, n_active, active);
    int first = 0;
    for (int base = 0; base < n_active; base += 32) {
        int i = base + thread, items = 0;
        if (i < n_active) {
            items = divide_up(pages_for(rt, algorithm, work, active[i]), chunk);
        }
        int sum = items;
        for (int at = 1; at < 32; at *= 2) {
            int other = __shfl_up_sync(FULL, sum, at);
            sum += thread >= at ? other : 0;
        }
        if (i < n_active) {
            s->first[i] = first + sum - items;
        }
        first += __shfl_sync(FULL, sum, 31);
    }
    if (thread == 0) {
        s->first[n_active] = first;
        s->chunk = chunk;
        s->items = first;
    }
}

// One block. Applies row deltas and forced tokens, makes every active lane one token longer, and schedules the work of
// the algorithms in `algorithms` (one bit each). Reads a few KiB over the link: about 5 us.
extern "C" __global__ void begin_step(const __grid_constant__ Runtime rt, const char* slots, int slot_bytes,
                                      int algorithms) {
    int step = *rt.step + 1;
    const int* slot = slot_of(rt, slots, slot_bytes, step);
    const StepHead head = *(const StepHead*)slot;
    const int* active = slot + 4;
    const int* rows = active + width_of(rt);
    const int* forced = rows + 8 * width_of(rt);
    const int* masked = forced + 2 * width_of(rt);
    for (int n = threadIdx.x; n < head.n_rows; n += blockDim.x) {
        int4 delta = *(const int4*)(rows + 4 * n);
        unsigned* table = delta.y == 0 ? rt.kv_rows : rt.summary_rows;
        table[(size_t)delta.x * rt.max_pages + delta.z] = delta.w;
    }
    for (int n = threadIdx.x; n < head.n_forced; n += blockDim.x) {
        rt.lanes[forced[2 * n]].forced = forced[2 * n + 1];
    }
    for (int n = threadIdx.x; n < head.n_masked; n += blockDim.x) {
        rt.lanes[masked[n]].masked = 1;
    }
    for (int i = threadIdx.x; i < head.n_active; i += blockDim.x) {
        Lane& lane = rt.lanes[active[i]];
        rt.active[i] = active[i];
        lane.len += 1;
        lane.mass = 0;
        lane.mass_count = 0;
        Cache& cache = rt.residency.caches[active[i]];
        Selected at = selected_at(lane.selection, lane.len);
        cache.end = at.pages ? at.indexed : at.sink;
        cache.hits = 0;
        cache.misses = 0;
    }
    __syncthreads();
    for (int n = threadIdx.x / 32; n < ALGORITHMS_MAX * WORKS; n += blockDim.x / 32) {
        if (algorithms >> (n / WORKS) & 1) {
            make_schedule(rt, n / WORKS, n % WORKS, head.n_active, rt.active);
        }
    }
    if (threadIdx.x == 0) {
        *rt.n_active = head.n_active;
        *rt.step = step;
    }
}

// Before begin_step, any grid: pages and summaries are in other rows, `moves` [count][lane, place, row, 1 for the
// summary table].
extern "C" __global__ void move_rows(const __grid_constant__ Runtime rt, const int4* moves, int count) {
    for (int n = blockIdx.x * blockDim.x + threadIdx.x; n < count; n += gridDim.x * blockDim.x) {
        unsigned* table = moves[n].w ? rt.summary_rows : rt.kv_rows;
        table[(size_t)moves[n].x * rt.max_pages + moves[n].y] = moves[n].z;
    }
}

// One block: a lane keeps its first `kept` slots and gets those of `joins` [count][row, tag] behind them; `groups` are
// then those of all its slots.
extern "C" __global__ void set_slots(const __grid_constant__ Runtime rt, const uint2* joins, int lane, int kept,
                                     int count, const unsigned* groups, int group_count) {
    const Residency& residency = rt.residency;
    for (int n = threadIdx.x; n < count; n += blockDim.x) {
        residency.cache_rows[(size_t)lane * residency.max_cache_rows + kept + n] = joins[n].x;
    }
    for (int n = threadIdx.x; n < group_count; n += blockDim.x) {
        residency.groups[(size_t)lane * residency.max_groups + n] = groups[n];
    }
    if (threadIdx.x == 0) {
        rt.residency.caches[lane].rows = kept + count;
    }
}

// Grid (blocks, max_lanes): the masks that came with the step, after begin_step.
extern "C" __global__ void copy_masks(const __grid_constant__ Runtime rt, const char* slots, int slot_bytes) {
    const int* slot = slot_of(rt, slots, slot_bytes, *rt.step);
    const StepHead* head = (const StepHead*)slot;
    if ((int)blockIdx.y >= head->n_masked) {
        return;
    }
    const int* masked = slot + 4 + 11 * width_of(rt);
    const int* words = masked + width_of(rt) + (size_t)blockIdx.y * rt.mask_words;
    unsigned* mask = rt.mask + (size_t)masked[blockIdx.y] * rt.mask_words;
    for (int n = blockIdx.x * blockDim.x + threadIdx.x; n < rt.mask_words; n += gridDim.x * blockDim.x) {
        mask[n] = words[n];
    }
}

// Sizes of what src/abi.rs mirrors, into out[7].
extern "C" __global__ void abi_sizes(int* out) {
    out[0] = sizeof(View);
    out[1] = sizeof(Partial);
    out[2] = sizeof(Lane);
    out[3] = sizeof(LaneOutput);
    out[4] = sizeof(Runtime);
    out[5] = sizeof(Units);
    out[6] = sizeof(Residency);
}
