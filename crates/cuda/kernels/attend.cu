// Exact attention of the decode step over page lists: a lane's whole row table, or what `topk` selected.
#include "attend.cuh"

// How the warps of a block stand at an item's end, and what they agree on.
struct Join {
    float largest[WARPS][GROUP_MAX];
    float sum[WARPS][GROUP_MAX];
    unsigned valid[WARPS][STAGES<64>]; // masks of each stage
    int is_last;
};

// Pairs of columns that a thread of a warp has.
template <int D>
constexpr int PIECES = (D + 63) / 64;

// Parts whose outputs a joining warp asks for at once.
constexpr int AT_ONCE = 8;

// Counts one more arrival: what this block wrote before is there for the block that counts last.
__device__ __forceinline__ int count_up(int* arrivals) {
    int before;
    asm volatile("atom.acq_rel.gpu.global.add.s32 %0, [%1], 1;" : "=r"(before) : "l"(arrivals) : "memory");
    return before;
}

// Output and log-sum-exp (here of base 2) of query head `g` of an item's part.
__device__ __forceinline__ float* split_place(const Runtime& rt, int number, int head, int g) {
    return rt.splits + (((size_t)number * rt.kv_heads + head) * rt.group + g) * (rt.head_dim + 2);
}

// A warp puts its unnormalised outputs into its (idle) ring, rows of D + 8 floats, and its sums beside.
template <int D>
__device__ __forceinline__ void put(const Softmax<D, true>& softmax, Join& join, float* rows, int warp, int thread) {
    int g = thread / 4;
    if (thread % 4 == 0) {
        join.largest[warp][g] = softmax.largest;
        join.sum[warp][g] = softmax.sum;
    }
#pragma unroll
    for (int j = 0; j < D / 8; j++) {
        const float(&part)[4] = softmax.output[j];
        *(float2*)(rows + g * (D + 8) + j * 8 + thread % 4 * 2) = make_float2(part[0] + part[2], part[1] + part[3]);
    }
}

// Joins the warps' parts of head `g` into `output` [D] and the result, the log-sum-exp of base 2.
template <int D>
__device__ __forceinline__ float join_warps(const Join& join, const char* rings, float* output, int g, int thread) {
    float largest = -INFINITY, sum = 0, factors[WARPS];
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        largest = fmaxf(largest, join.largest[w][g]);
    }
#pragma unroll
    for (int w = 0; w < WARPS; w++) {
        factors[w] = exp2_fast(join.largest[w][g] - largest);
        sum += factors[w] * join.sum[w][g];
    }
    float share = reciprocal(sum);
#pragma unroll
    for (int j = 0; j < PIECES<D>; j++) {
        int column = j * 64 + thread * 2;
        if (D <= column) {
            continue;
        }
        float2 total = make_float2(0, 0);
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            float2 x = *(const float2*)((const float*)(rings + w * WARP_RING<D, true>) + g * (D + 8) + column);
            total.x += factors[w] * x.x;
            total.y += factors[w] * x.y;
        }
        *(float2*)(output + column) = make_float2(total.x * share, total.y * share);
    }
    return largest + log2_fast(sum);
}

// Joins the parts of head `g`, items `first..first + parts`, in ascending order: one warp. Other blocks wrote them, so
// that only L2 is to be asked.
template <int D>
__device__ __forceinline__ float join_parts(const Runtime& rt, int first, int parts, int head, float* output, int g,
                                            int thread) {
    size_t stride = (size_t)rt.kv_heads * rt.group * (D + 2);
    const float* from = split_place(rt, first, head, g);
    // Of part `thread`, and the largest of all.
    float lse = thread < parts ? __ldcg(from + thread * stride + D) : -INFINITY, largest = lse;
#pragma unroll 1
    for (int part = thread + 32; part < parts; part += 32) {
        largest = fmaxf(largest, __ldcg(from + part * stride + D));
    }
    float sum = 0;
    float2 total[PIECES<D>] = {};
#pragma unroll 1
    for (int base = 0; base < parts; base += AT_ONCE) {
        // These are asked for before the factors are known.
        float2 x[AT_ONCE][PIECES<D>];
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
#pragma unroll
            for (int j = 0; j < PIECES<D>; j++) {
                bool in = base + k < parts && j * 64 + thread * 2 < D;
                const float2* place = (const float2*)(from + (base + k) * stride) + j * 32 + thread;
                x[k][j] = in ? __ldcg(place) : make_float2(0, 0);
            }
        }
        if (base == 0) {
            largest = warp_max(largest);
        }
        if (base > 0 && base % 32 == 0) {
            lse = base + thread < parts ? __ldcg(from + (base + thread) * stride + D) : -INFINITY;
        }
#pragma unroll
        for (int k = 0; k < AT_ONCE; k++) {
            float factor = exp2_fast(__shfl_sync(FULL, lse, (base + k) % 32) - largest);
            sum += factor;
#pragma unroll
            for (int j = 0; j < PIECES<D>; j++) {
                total[j].x += factor * x[k][j].x;
                total[j].y += factor * x[k][j].y;
            }
        }
    }
    float share = reciprocal(sum);
#pragma unroll
    for (int j = 0; j < PIECES<D>; j++) {
        if (j * 64 + thread * 2 < D) {
            ((float2*)output)[j * 32 + thread] = make_float2(total[j].x * share, total[j].y * share);
        }
    }
    return largest + log2_fast(sum);
}

// The item's part is in the workspace: the last part of its head to arrive writes the head's result.
template <int D>
__device__ __forceinline__ void arrive(const Runtime& rt, const Item& item, int number, int head, const Partial& out,
                                       Join& join) {
    int warp = threadIdx.x / 32, thread = threadIdx.x % 32;
    int* arrivals = rt.arrivals + item.i * rt.kv_heads + head;
    __syncthreads();
    if (threadIdx.x == 0) {
        join.is_last = count_up(arrivals) == item.parts - 1;
    }
    __syncthreads();
    if (!join.is_last) {
        return;
    }
#pragma unroll 1
    for (int g = warp; g < rt.group; g += WARPS) {
        size_t at = (size_t)item.i * rt.q_heads + head * rt.group + g;
        float lse = join_parts<D>(rt, number - item.part, item.parts, head, out.output + at * D, g, thread);
        if (thread == 0) {
            out.lse[at] = lse * LN_2;
        }
    }
    if (threadIdx.x == 0) {
        *arrivals = 0;
    }
}

template <int D>
__device__ __forceinline__ void attend(const Runtime& rt, int algorithm, int layer, int work, bool beside,
                                       const View& q, const Partial& out) {
    extern __shared__ __align__(128) char rings[];
    __shared__ Join join;
    int warp = threadIdx.x / 32, thread = threadIdx.x % 32;
    char* ring = rings + warp * WARP_RING<D, true>;
    unsigned ring_address = (unsigned)__cvta_generic_to_shared(ring);
    const Schedule* s = schedule(rt, algorithm, work);
    let_successor_start();
    if (!beside) {
        wait_for_predecessor();
    }
    const int items = s->items, head = blockIdx.x;
    for (int number = blockIdx.y;;) {
        // The first item is looked up while it is not known yet whether there is one.
        Item item = item_of_warp(rt, s, number, thread);
        if (items <= number) {
            return;
        }
        size_t list = (size_t)item.i * rt.kv_heads + head;
        Pages pages;
        pages.is_list = work == LIST;
        pages.pass = beside ? HERE : ALL;
        const unsigned* rows = rt.kv_rows + (size_t)item.lane * rt.max_pages;
        pages.table = pages.is_list ? rt.page_list + list * rt.max_pages : rows;
        pages.open(rt, item, layer, head, warp, thread);
        pages.tokens = *(const volatile int*)&rt.lanes[item.lane].len;
        int listed = *(const volatile int*)(rt.page_list_len + list);
        pages.bound(item, pages.is_list ? listed : pages_of(pages.tokens));
        Softmax<D, true> softmax;
        auto read = [&](Queries<D>& queries) { queries.read(q, item.i, head * rt.group, rt.group, thread); };
        run_pages<D, true>(pages, ring_address, join.valid[warp], softmax, thread, read);
        __syncwarp();
        put<D>(softmax, join, (float*)ring, warp, thread);
        __syncthreads();
#pragma unroll 1
        for (int g = warp; g < rt.group; g += WARPS) {
            size_t at = (size_t)item.i * rt.q_heads + head * rt.group + g;
            float* part = item.parts > 1 ? split_place(rt, number, head, g) : out.output + at * D;
            float lse = join_warps<D>(join, rings, part, g, thread);
            if (thread == 0) {
                *(item.parts > 1 ? part + D : out.lse + at) = item.parts > 1 ? lse : lse * LN_2;
            }
        }
        if (item.parts > 1) {
            arrive<D>(rt, item, number, head, out, join);
        }
        number += gridDim.y;
        if (items <= number) {
            return;
        }
        __syncthreads();
    }
}

// Attention of each lane's queries over its work: items of the algorithm's schedule, one KV head's group of query heads
// at a time, K and V of a page read once. q [rows][q_heads * d] to out. The parts of one (lane, head) meet in `splits`;
// the last to arrive joins them, ascending.
// Grid: (kv_heads, any), 128 threads, two blocks on each multiprocessor; items are taken in turn. Shared: 96 KiB, a
// ring of pages for each warp.
// `beside`: the kernel before it is `retrieve`, which still runs. Warps pass the pages that are in the pool, then wait
// for it, and pass those that were coming.
// With overlap, blocks that find another kernel's in their place are spread unevenly (a fifth at 160 items); a whole
// step gains all the same (1 to 2 % at 1 and 16 lanes of 8K).
// Bytes: K and V of the pages, 4 KiB each at d = 128, at no less than 85 % of a copy's speed where every block has an
// item of 500 pages or more (measured: 96 to 100 %); where they are few, a few reads in a row (schedule, table, page,
// parts): 3 us for one page, 7 us for 1,024 tokens of one lane.
#define ATTEND(D)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(WARPS * 32, 2)                                                    \
        attend_##D(const __grid_constant__ Runtime rt, int algorithm, int layer, int work, int beside,             \
                   const __grid_constant__ View q, const __grid_constant__ Partial out) {                          \
        attend<D>(rt, algorithm, layer, work, beside, q, out);                                                     \
        end_beside(beside);                                                                                        \
    }

ATTEND(64)
ATTEND(96)
ATTEND(128)
