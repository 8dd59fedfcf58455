// What `attend` and `attention_mass` share: the pages of an item on their way through shared memory, and the softmax
// over them. Each warp has its own pages, ring and softmax, so that warps wait for one another only at an item's end.
#pragma once

#include "instructions.cuh"
#include "runtime.cuh"

constexpr int WARPS = 4;
constexpr int STEP_PAGES = 2;   // of a warp's step: 16 tokens, the depth of one matrix instruction
constexpr int BATCH_STEPS = 16; // steps whose pages a warp looks up at once, one page a thread
constexpr float LOG2_E = 1.44269504f;
constexpr float LN_2 = 0.69314718f;

// Steps that a warp's ring holds. Ring bytes do not depend on the head size: 24 KiB a warp, 96 KiB a block (half where
// only keys are read), two blocks on a multiprocessor of compute capability 9.0, one on any other since 8.0.
template <int D>
constexpr int STAGES = 384 / D;

// Bytes of a page in the ring.
template <int D, bool VALUES>
constexpr int SLOT = (VALUES ? 2 : 1) * PAGE_TOKENS * D * 2;

template <int D, bool VALUES>
constexpr int WARP_RING = STAGES<D> * STEP_PAGES * SLOT<D, VALUES>;

// ---- instructions

// 16 bytes to shared memory, each address with an offset: those of `source` or, where `bytes` is 0, zeros.
template <int TO, int FROM>
__device__ __forceinline__ void copy_async(unsigned target, const void* source, int bytes) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0 + %3], [%1 + %4], 16, %2;" ::"r"(target), "l"(source),
                 "r"(bytes), "n"(TO), "n"(FROM)
                 : "memory");
}

__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `LATER` commits of this thread are under way.
template <int LATER>
__device__ __forceinline__ void copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LATER) : "memory");
}

__device__ __forceinline__ void load_matrices(unsigned (&out)[4], unsigned source) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(source)
                 : "memory");
}

__device__ __forceinline__ void load_transposed(unsigned (&out)[4], unsigned source) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(source)
                 : "memory");
}

// log2(x) within 2^-22.
__device__ __forceinline__ float log2_fast(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// 1 / x within 2^-23.
__device__ __forceinline__ float reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// Two numbers as two bf16 each: rounded, and what rounding took away.
__device__ __forceinline__ void split(float x, float y, unsigned& high, unsigned& low) {
    __nv_bfloat162 rounded = __floats2bfloat162_rn(x, y);
    float2 wide = __bfloat1622float2(rounded);
    __nv_bfloat162 rest = __floats2bfloat162_rn(x - wide.x, y - wide.y);
    high = *(unsigned*)&rounded;
    low = *(unsigned*)&rest;
}

// ---- items

// As `item_of`, found by a whole warp without a chain of reads; `end` is left open. Harmless where `number` is not
// below the schedule's items.
__device__ __forceinline__ Item item_of_warp(const Runtime& rt, const Schedule* s, int number, int thread) {
    Item item = {0, 0, 0, 0, 0, 0};
    int n_active = *rt.n_active, chunk = s->chunk;
    for (int base = 0; base < rt.max_lanes; base += 32) {
        int at = base + thread;
        bool inside = at < rt.max_lanes;
        int first = inside ? s->first[at] : 0, next = inside ? s->first[at + 1] : 0, lane = inside ? rt.active[at] : 0;
        int before = __popc(__ballot_sync(FULL, at < n_active && first <= number));
        if (before > 0) {
            item.i = base + before - 1;
            item.lane = __shfl_sync(FULL, lane, before - 1);
            item.part = number - __shfl_sync(FULL, first, before - 1);
            item.parts = __shfl_sync(FULL, next - first, before - 1);
        }
        if (before < 32) {
            break;
        }
    }
    item.first = item.part * chunk;
    item.end = item.first + chunk;
    return item;
}

// ---- pages

// Which pages of an item a pass takes: all of them, or those that are in the pool, and then those that come.
enum Pass { ALL, HERE, COMING };

// In the place of an entry that a pass does not take.
constexpr unsigned ABSENT = 63;

// The pages of an item for one warp of its block: of every `WARPS * STEP_PAGES` pages, `STEP_PAGES` in each step.
struct Pages {
    const bf16* frames;     // this thread's first chunk of row 0's frame
    unsigned stride;        // elements of a row
    const unsigned* table;  // row table, or page entries
    int width;              // of the table
    bool is_list;
    int tokens;             // of a row table
    int first, end;         // this warp's first page; one past the item's last
    int steps;
    Pass pass;
    bool some_come;         // of this thread's entries
    unsigned entries, next; // entries of a batch of steps, words of the table for the next: one page a thread

    // Reads the table before the list's length is known: reads in a row are what takes time. Volatile reads, here and
    // of the length, stay in this order.
    __device__ __forceinline__ void open(const Runtime& rt, const Item& item, int layer, int head, int warp,
                                         int thread) {
        some_come = false;
        frames = frame(rt, 0, layer, head) + thread * 8;
        stride = (unsigned)(rt.layers * rt.kv_heads) * (2 * PAGE_TOKENS * rt.head_dim);
        width = rt.max_pages;
        first = item.first + warp * STEP_PAGES;
        int at = page(thread / STEP_PAGES, thread % STEP_PAGES);
        next = at < width ? *(const volatile unsigned*)(table + at) : 0;
    }

    __device__ __forceinline__ void bound(const Item& item, int length) {
        end = min(item.end, length);
        steps = (end - first + WARPS * STEP_PAGES - 1) / (WARPS * STEP_PAGES);
    }

    __device__ __forceinline__ int page(int step, int j) const { return first + step * WARPS * STEP_PAGES + j; }

    __device__ __forceinline__ unsigned look_up(int step, int thread) const {
        int at = page(step + thread / STEP_PAGES, thread % STEP_PAGES);
        return at < width ? table[at] : 0;
    }

    // Goes on to the batch that begins with `step`.
    __device__ __forceinline__ void turn(int step, int thread) {
        int at = page(step + thread / STEP_PAGES, thread % STEP_PAGES);
        entries = is_list ? next : page_entry(next, 0, min(PAGE_TOKENS, tokens - at * PAGE_TOKENS));
        bool comes = at < end && is_coming(entries);
        some_come |= comes;
        entries = comes ? page_entry(entry_row(entries), 0, PAGE_TOKENS) : entries;
        bool taken = at < end && (pass == ALL || (pass == COMING) == comes);
        entries = taken ? entries : ABSENT;
        next = look_up(step + BATCH_STEPS, thread);
    }

    // Behind a pass: whether there is another one. The pages that it takes have come then.
    __device__ __forceinline__ bool pass_again(int thread) {
        if (pass != HERE || !__any_sync(FULL, some_come)) {
            return false;
        }
        wait_for_predecessor();
        pass = COMING;
        next = look_up(0, thread);
        return true;
    }
};

// Byte of 16-byte chunk `chunk` of row `row` (a token's key, or 8 on its value) of a page in the ring: eight rows' same
// chunk lie in different banks.
template <int D>
__device__ __forceinline__ int place(int row, int chunk) {
    int key = D == 96 ? row >> 1 & 3 : row & 7;
    return row * 2 * D + (chunk ^ key) * 16;
}

// Starts a page's chunks from `AT` on, 32 of each side at once, on their way to `slot`; rows of tokens that are not
// `valid` become zeros. `source` is the thread's first chunk of the frame.
template <int D, bool VALUES, int AT = 0>
__device__ __forceinline__ void copy_page(unsigned slot, const bf16* source, unsigned valid, int thread) {
    constexpr int CHUNKS = D / 8, SIDE = PAGE_TOKENS * D * 2;
    if constexpr (AT * 16 < SIDE) {
        int row = (AT + thread) / CHUNKS, chunk = (AT + thread) % CHUNKS;
        int bytes = valid >> row & 1 ? 16 : 0;
        unsigned target = slot + place<D>(row, chunk);
        copy_async<0, AT * 16>(target, source, bytes);
        if constexpr (VALUES) {
            copy_async<SIDE, AT * 16 + SIDE>(target, source, bytes);
        }
        copy_page<D, VALUES, AT + 32>(slot, source, valid, thread);
    }
}

// Starts the pages of a step on their way to a stage of the warp's ring; `valid` gets their masks, 8 bits each.
template <int D, bool VALUES>
__device__ __forceinline__ void copy_step(Pages& pages, int step, unsigned stage, unsigned* valid, int thread) {
    if (step < pages.steps) {
        if (step % BATCH_STEPS == 0) {
            pages.turn(step, thread);
        }
        unsigned masks = 0;
#pragma unroll
        for (int j = 0; j < STEP_PAGES; j++) {
            unsigned entry = __shfl_sync(FULL, pages.entries, step % BATCH_STEPS * STEP_PAGES + j);
            unsigned mask = entry == ABSENT ? 0 : ((1u << entry_count(entry)) - 1) << entry_first(entry);
            masks |= mask << 8 * j;
        }
#pragma unroll
        for (int j = 0; j < STEP_PAGES; j++) {
            unsigned entry = __shfl_sync(FULL, pages.entries, step % BATCH_STEPS * STEP_PAGES + j);
            const bf16* source = pages.frames + (size_t)entry_row(entry) * pages.stride;
            if (masks) {
                copy_page<D, VALUES>(stage + j * SLOT<D, VALUES>, source, masks >> 8 * j & 0xff, thread);
            }
        }
        if (thread == 0) {
            *valid = masks;
        }
    }
    copies_commit();
}

// ---- softmax

// Queries of a group as the left operand: head g in row g, and what rounding to bf16 took from it in row 8 + g, which
// would be idle: queries count as f32 (nearly: 2^-17) at no cost.
template <int D>
struct Queries {
    unsigned a[D / 16][4];

    __device__ __forceinline__ void read(const View& q, int row, int first_head, int group, int thread) {
        int g = thread / 4;
        size_t at = (size_t)row * q.cols + (first_head + g) * D + thread % 4 * 2;
        if (q.is_bf16) {
            const unsigned* from = (const unsigned*)((const bf16*)q.data + at);
#pragma unroll
            for (int i = 0; i < D / 8; i++) {
                a[i / 2][i % 2 * 2] = g < group ? from[i * 4] : 0;
                a[i / 2][i % 2 * 2 + 1] = 0;
            }
        } else {
            const float2* from = (const float2*)((const float*)q.data + at);
#pragma unroll
            for (int i = 0; i < D / 8; i++) {
                float2 x = g < group ? from[i * 4] : make_float2(0, 0);
                split(x.x, x.y, a[i / 2][i % 2 * 2], a[i / 2][i % 2 * 2 + 1]);
            }
        }
    }
};

// Softmax of a warp so far; thread t has head t / 4. In powers of two: `largest` is the largest logit times
// scale log2(e), `sum` this thread's share of the weights 2^(x - largest), `output` its columns
// 8 j + 2 (t % 4) + {0, 1} times the weights rounded to bf16 and, apart, times what rounding took from these (as in
// `Queries`).
template <int D, bool VALUES>
struct Softmax {
    float largest, sum;
    float output[VALUES ? D / 8 : 1][4];

    __device__ __forceinline__ void reset() {
        largest = -INFINITY;
        sum = 0;
#pragma unroll
        for (auto& part : output) {
            part[0] = part[1] = part[2] = part[3] = 0;
        }
    }

    // Adds a step; at least one of its tokens is valid.
    __device__ __forceinline__ void add(const Queries<D>& q, unsigned stage, unsigned valid, float scale, int thread) {
        float x[STEP_PAGES][2];
        float step_largest = -INFINITY;
#pragma unroll
        for (int j = 0; j < STEP_PAGES; j++) {
            // Two sums, of even and odd k: half the latency.
            float logits[2][4] = {};
#pragma unroll
            for (int k = 0; k < D / 32; k++) {
                unsigned keys[4];
                load_matrices(keys, stage + j * SLOT<D, VALUES> + place<D>(thread % 8, 4 * k + thread / 8));
                multiply(logits[0], q.a[2 * k], keys[0], keys[1]);
                multiply(logits[1], q.a[2 * k + 1], keys[2], keys[3]);
            }
#pragma unroll
            for (int i = 0; i < 2; i++) {
                bool in = valid >> (8 * j + thread % 4 * 2 + i) & 1;
                x[j][i] = in ? (logits[0][i] + logits[0][2 + i]) + (logits[1][i] + logits[1][2 + i]) : -INFINITY;
                step_largest = fmaxf(step_largest, x[j][i]);
            }
        }
        step_largest = fmaxf(step_largest, __shfl_xor_sync(FULL, step_largest, 1));
        step_largest = fmaxf(step_largest, __shfl_xor_sync(FULL, step_largest, 2));
        step_largest *= scale;
        if (__any_sync(FULL, largest < step_largest)) {
            float now = fmaxf(largest, step_largest);
            float factor = exp2_fast(largest - now);
            largest = now;
            sum *= factor;
#pragma unroll
            for (auto& part : output) {
                part[0] *= factor, part[1] *= factor, part[2] *= factor, part[3] *= factor;
            }
        }
        unsigned weights[4];
#pragma unroll
        for (int j = 0; j < STEP_PAGES; j++) {
            float first = exp2_fast(fmaf(x[j][0], scale, -largest));
            float second = exp2_fast(fmaf(x[j][1], scale, -largest));
            sum += first + second;
            split(first, second, weights[2 * j], weights[2 * j + 1]);
        }
        if (VALUES) {
            add_values(weights, stage, thread);
        }
    }

    __device__ __forceinline__ void add_values(const unsigned (&weights)[4], unsigned stage, int thread) {
        unsigned page = stage + (thread / 8 % 2) * SLOT<D, VALUES>;
#pragma unroll
        for (int j = 0; j < D / 8; j += 2) {
            unsigned values[4];
            load_transposed(values, page + place<D>(8 + thread % 8, j + thread / 16));
            multiply(output[j], weights, values[0], values[1]);
            multiply(output[j + 1], weights, values[2], values[3]);
        }
    }
};

// A warp's pages of an item through its ring, as many steps under way at once as it has stages; `read` reads the
// queries behind the first copies of a pass; `valid` has room for each stage's masks. One loop fills and empties the
// ring, since machine code must be fetched, too. Leaves the ring idle.
template <int D, bool VALUES, typename Read>
__device__ __forceinline__ void run_pages(Pages& pages, unsigned ring, unsigned* valid, Softmax<D, VALUES>& softmax,
                                          int thread, Read read) {
    constexpr int STAGE = STEP_PAGES * SLOT<D, VALUES>;
    float scale = LOG2_E / sqrtf((float)D);
    Queries<D> queries;
    softmax.reset();
    do {
        int ahead = min(STAGES<D>, pages.steps), at = 0;
#pragma unroll 1
        for (int step = -ahead; step < pages.steps; step++) {
            if (step >= 0) {
                if (ahead == STAGES<D>) {
                    copies_wait<STAGES<D> - 1>();
                } else {
                    copies_wait<0>();
                }
                __syncwarp();
                if (unsigned masks = valid[at]) {
                    softmax.add(queries, ring + at * STAGE, masks, scale, thread);
                }
                __syncwarp();
            }
            copy_step<D, VALUES>(pages, step + ahead, ring + at * STAGE, valid + at, thread);
            if (step == -1) {
                read(queries);
            }
            at = at + 1 == ahead ? 0 : at + 1;
        }
        copies_wait<0>();
    } while (pages.pass_again(thread));
    softmax.sum += __shfl_xor_sync(FULL, softmax.sum, 1);
    softmax.sum += __shfl_xor_sync(FULL, softmax.sum, 2);
}
