// What both forms of `estimate` share: what a block works on, and how parts become the op's output.
#pragma once

#include "score.cuh"

constexpr int THREADS = 128;
constexpr int WARPS = THREADS / 32;
constexpr float NEGLIGIBLE = 17.32868f; // 25 ln 2

// What one block works on: an item of the schedule INDEXED for one KV head, one of the parts that a head's pages are
// cut into. Parts' partials lie in rt.splits.
template <int D, int SLOTS>
struct Task {
    int i, lane, head, sink;
    int first, end;          // pages
    int number, part, parts; // of the item; of the head
    const unsigned* selected;
    const float* scores;     // of the group's first query head

    struct Shared {
        alignas(16) float sums[THREADS / (D / 4) * 8 * D]; // of warps (four), then of the parts of a rotation
        float result[SLOTS][D];
        float largest[WARPS][SLOTS];
        alignas(16) float most[SLOTS]; // scores
        float lse[SLOTS];
        float totals[3][WARPS][8];     // sums of p, of p mean and of a
        int is_last;
    };

    // Item and head `n` of a schedule; for a whole warp, which looks at 32 lanes at once.
    __device__ __forceinline__ void take(const Runtime& rt, const Schedule* s, int n) {
        int thread = threadIdx.x % 32, n_active = *rt.n_active;
        number = n / rt.kv_heads;
        head = n % rt.kv_heads;
        i = 0;
        for (int base = 0; base < n_active; base += 32) {
            int at = base + thread;
            i += __popc(__ballot_sync(FULL, at < n_active && s->first[at] <= number));
        }
        i -= 1;
        part = number - s->first[i];
        parts = s->first[i + 1] - s->first[i];
        lane = rt.active[i];
        sink = rt.lanes[lane].selection.sink_pages;
        first = part * s->chunk;
        end = min(first + s->chunk, pages_of_work(rt.lanes[lane], INDEXED));
        int row = i * rt.kv_heads + head;
        selected = rt.selected + (size_t)row * rt.bitmap_words;
        scores = rt.page_scores + (size_t)row * rt.group * rt.max_pages;
    }

    // Whether a page is an unselected candidate.
    __device__ __forceinline__ bool includes(int page) const {
        return (page >= sink) & !(__ldg(selected + page / 32) >> (page % 32) & 1);
    }

    // A page's score for one query head; of a slot without a head, for the group's last.
    __device__ __forceinline__ float score(const Runtime& rt, int slot, int page) const {
        return __ldg(scores + (size_t)min(slot, rt.group - 1) * rt.max_pages + page);
    }

    // Scores of every THREADS-th page from `page` on, read side by side, and a bit for each that is included.
    static constexpr int BATCH = 32 / SLOTS;
    __device__ __forceinline__ void read_scores(const Runtime& rt, int page, float (&x)[BATCH][SLOTS],
                                                unsigned& in) const {
        in = 0;
#pragma unroll
        for (int n = 0; n < BATCH; n++) {
            int at = min(page + n * THREADS, end - 1);
            in |= (unsigned)(includes(at) & (page + n * THREADS < end)) << n;
#pragma unroll
            for (int h = 0; h < SLOTS; h++) {
                x[n][h] = score(rt, h, at);
            }
        }
    }

    // Leaves each slot's largest score among included pages in `shared.most`; -inf for none.
    __device__ __forceinline__ void find_most(const Runtime& rt, Shared& shared) const {
        float largest[SLOTS];
#pragma unroll
        for (int h = 0; h < SLOTS; h++) {
            largest[h] = -INFINITY;
        }
        for (int base = first + threadIdx.x; base < end; base += BATCH * THREADS) {
            float x[BATCH][SLOTS];
            unsigned in;
            read_scores(rt, base, x, in);
#pragma unroll
            for (int n = 0; n < BATCH * SLOTS; n++) {
                float& most = largest[n % SLOTS];
                most = in >> n / SLOTS & 1 ? fmaxf(most, x[n / SLOTS][n % SLOTS]) : most;
            }
        }
        __syncthreads();
#pragma unroll
        for (int h = 0; h < SLOTS; h++) {
            float x = warp_max(largest[h]);
            if (threadIdx.x % 32 == 0) {
                shared.largest[threadIdx.x / 32][h] = x;
            }
        }
        __syncthreads();
        if (threadIdx.x < SLOTS) {
            float most = shared.largest[0][threadIdx.x];
#pragma unroll
            for (int warp = 1; warp < WARPS; warp++) {
                most = fmaxf(most, shared.largest[warp][threadIdx.x]);
            }
            shared.most[threadIdx.x] = most;
        }
        __syncthreads();
    }
};

// ---- the end of an item

// Rotates results [SLOTS][D] back by the transpose of a KV head's rotation: threads share the rotated channels.
template <int D, int SLOTS>
__device__ __forceinline__ void rotate_back(typename Task<D, SLOTS>::Shared& shared, const float* rotation) {
    constexpr int COLUMNS = D / 4, PARTS = THREADS / COLUMNS, DEEP = 8;
    int column = threadIdx.x % COLUMNS, part = threadIdx.x / COLUMNS;
    float4 sums[SLOTS] = {};
    if (part < PARTS) {
        for (int base = part; base < D; base += DEEP * PARTS) {
            float4 r[DEEP];
#pragma unroll
            for (int n = 0; n < DEEP; n++) {
                r[n] = __ldg((const float4*)(rotation + (size_t)min(base + n * PARTS, D - 1) * D) + column);
            }
#pragma unroll
            for (int n = 0; n < DEEP; n++) {
#pragma unroll
                for (int h = 0; h < SLOTS; h++) {
                    float x = base + n * PARTS < D ? shared.result[h][base + n * PARTS] : 0.0f;
                    sums[h].x = fmaf(x, r[n].x, sums[h].x), sums[h].y = fmaf(x, r[n].y, sums[h].y);
                    sums[h].z = fmaf(x, r[n].z, sums[h].z), sums[h].w = fmaf(x, r[n].w, sums[h].w);
                }
            }
        }
#pragma unroll
        for (int h = 0; h < SLOTS; h++) {
            *(float4*)&shared.sums[(part * SLOTS + h) * D + 4 * column] = sums[h];
        }
    }
    __syncthreads();
    for (int n = threadIdx.x; n < SLOTS * D; n += THREADS) {
        float sum = 0;
#pragma unroll
        for (int part = 0; part < PARTS; part++) {
            sum += shared.sums[part * SLOTS * D + n];
        }
        (&shared.result[0][0])[n] = sum;
    }
    __syncthreads();
}

// Joins the parts of a head, ascending, into the results.
template <int D, int SLOTS>
__device__ __forceinline__ void merge_parts(const Runtime& rt, const Task<D, SLOTS>& task,
                                            typename Task<D, SLOTS>::Shared& shared) {
    constexpr int WIDTH = D + 2, AT_ONCE = 64, DEEP = 32 / SLOTS;
    int parts = task.parts, c = min((int)threadIdx.x, D - 1);
    size_t stride = (size_t)rt.kv_heads * rt.group * WIDTH, row = (size_t)task.head * rt.group * WIDTH;
    const float* first = rt.splits + (task.number - task.part) * stride + row;
    for (int h = threadIdx.x / 32; h < SLOTS; h += WARPS) {
        float most = -INFINITY;
        for (int part = threadIdx.x % 32; part < parts; part += 32) {
            most = fmaxf(most, __ldcg(first + part * stride + min(h, rt.group - 1) * WIDTH + D));
        }
        most = warp_max(most);
        if (threadIdx.x % 32 == 0) {
            shared.lse[h] = most;
        }
    }
    float values[SLOTS] = {}, totals[SLOTS] = {};
    for (int base = 0; base < parts; base += AT_ONCE) {
        __syncthreads();
        for (int n = threadIdx.x; n < AT_ONCE * SLOTS; n += THREADS) {
            int part = base + n / SLOTS, h = n % SLOTS;
            float lse = part < parts ? __ldcg(first + part * stride + min(h, rt.group - 1) * WIDTH + D) : -INFINITY;
            shared.sums[n] = lse == -INFINITY ? 0.0f : exp2_fast((lse - shared.lse[h]) * LOG2_E);
        }
        __syncthreads();
        for (int n = 0; n < min(AT_ONCE, parts - base); n += DEEP) {
            float x[DEEP][SLOTS];
#pragma unroll
            for (int k = 0; k < DEEP * SLOTS; k++) {
                int part = min(base + n + k / SLOTS, parts - 1), h = min(k % SLOTS, rt.group - 1);
                x[k / SLOTS][k % SLOTS] = __ldcg(first + part * stride + h * WIDTH + c);
            }
#pragma unroll
            for (int k = 0; k < DEEP * SLOTS; k++) {
                float weight = shared.sums[n * SLOTS + k];
                totals[k % SLOTS] += weight;
                values[k % SLOTS] = fmaf(weight, x[k / SLOTS][k % SLOTS], values[k % SLOTS]);
            }
        }
    }
    __syncthreads();
#pragma unroll
    for (int h = 0; h < SLOTS; h++) {
        bool some = totals[h] > 0;
        if ((int)threadIdx.x < D) {
            shared.result[h][threadIdx.x] = some ? values[h] / totals[h] : 0.0f;
        }
        if (threadIdx.x == 0) {
            shared.lse[h] = some ? shared.lse[h] + logf(totals[h]) : -INFINITY;
        }
    }
    __syncthreads();
}

// Takes a block's results [group][D] and lse: the last part of a head to come writes the op's output.
template <int D, int SLOTS>
__device__ __forceinline__ void finish(const Runtime& rt, const Task<D, SLOTS>& task,
                                       typename Task<D, SLOTS>::Shared& shared, const float* rotation,
                                       const Partial& out) {
    if (task.parts > 1) {
        float* split = rt.splits + ((size_t)task.number * rt.kv_heads + task.head) * rt.group * (D + 2);
        for (int n = threadIdx.x; n < rt.group * D; n += THREADS) {
            split[n / D * (D + 2) + n % D] = shared.result[n / D][n % D];
        }
        if ((int)threadIdx.x < rt.group) {
            split[threadIdx.x * (D + 2) + D] = shared.lse[threadIdx.x];
        }
        __syncthreads();
        if (threadIdx.x == 0) {
            int* arrivals = rt.arrivals + task.i * rt.kv_heads + task.head;
            __threadfence();
            shared.is_last = atomicAdd(arrivals, 1) == task.parts - 1;
            if (shared.is_last) {
                *arrivals = 0;
            }
            __threadfence();
        }
        __syncthreads();
        if (!shared.is_last) {
            return;
        }
        merge_parts<D, SLOTS>(rt, task, shared);
    }
    if (rotation) {
        rotate_back<D, SLOTS>(shared, rotation + (size_t)task.head * D * D);
    }
    size_t row = (size_t)task.i * rt.q_heads + task.head * rt.group;
    for (int n = threadIdx.x; n < rt.group * D; n += THREADS) {
        out.output[row * D + n] = (&shared.result[0][0])[n];
    }
    if ((int)threadIdx.x < rt.group) {
        out.lse[row + threadIdx.x] = shared.lse[threadIdx.x];
    }
}

// Lanes of the algorithm that attend every token exactly have no items: their rows say that there is nothing.
template <int D>
__device__ __forceinline__ void write_exact_lanes(const Runtime& rt, int algorithm, const Partial& out) {
    for (int n = blockIdx.x; n < *rt.n_active * rt.kv_heads; n += gridDim.x) {
        const Lane& lane = rt.lanes[rt.active[n / rt.kv_heads]];
        if (lane.algorithm == algorithm && pages_of_work(lane, INDEXED) == 0) {
            size_t row = (size_t)n * rt.group;
            for (int c = threadIdx.x; c < rt.group * D; c += THREADS) {
                out.output[row * D + c] = 0;
            }
            if ((int)threadIdx.x < rt.group) {
                out.lse[row + threadIdx.x] = -INFINITY;
            }
        }
    }
}

// Works through a block's items: `work(task)` leaves an item's results in shared memory.
template <int D, int SLOTS, typename Run>
__device__ __forceinline__ void run_items(const Runtime& rt, int algorithm, const float* rotation, const Partial& out,
                                          typename Task<D, SLOTS>::Shared& shared, Run work) {
    // Shared, for registers to be the loops'.
    __shared__ Task<D, SLOTS> task;
    const Schedule* s = schedule(rt, algorithm, INDEXED);
    for (int n = blockIdx.x; n < s->items * rt.kv_heads; n += gridDim.x) {
        Task<D, SLOTS> next;
        next.take(rt, s, n);
        if (threadIdx.x == 0) {
            task = next;
        }
        __syncthreads();
        task.find_most(rt, shared);
        work(task);
        finish<D, SLOTS>(rt, task, shared, rotation, out);
        __syncthreads();
    }
    write_exact_lanes<D>(rt, algorithm, out);
}
