// Selections that are made up, for measurements with random weights: backend/src/made_up.rs has the rule.
#include "runtime.cuh"

__device__ __forceinline__ unsigned mix(unsigned x) {
    x = (x ^ x >> 16) * 0x7feb352du;
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

// Grid (kv_heads, rows): a lane's bitmap and its list's selected entries, as topk writes them. In 65,536 steps a page
// is another one `changes` times.
extern "C" __global__ void made_up_selection(const __grid_constant__ Runtime rt, int algorithm, int layer,
                                             unsigned changes) {
    let_successor_start();
    wait_for_predecessor();
    int head = blockIdx.x, i = blockIdx.y;
    if (*rt.n_active <= i || rt.lanes[rt.active[i]].algorithm != algorithm) {
        return;
    }
    int id = rt.active[i];
    const Lane& lane = rt.lanes[id];
    Selected at = selected_at(lane.selection, lane.len);
    if (!at.pages) {
        return;
    }
    size_t number = (size_t)i * rt.kv_heads + head;
    unsigned* bitmap = rt.selected + number * rt.bitmap_words;
    unsigned* list = rt.page_list + number * rt.max_pages + at.sink;
    for (int n = threadIdx.x; n < rt.bitmap_words; n += blockDim.x) {
        bitmap[n] = 0;
    }
    __syncthreads();
    int most = (at.indexed - at.sink) / at.k, stratum = (int)(0.9 / fmax(lane.selection.budget, 1e-6));
    stratum = max(1, min(stratum, most));
    unsigned seed = mix(id * 0x9e3779b9u + layer * 0x85ebca6bu + head * 0xc2b2ae35u);
    for (int n = threadIdx.x; n < at.k; n += blockDim.x) {
        unsigned place = mix(seed ^ n * 0x27d4eb2fu);
        unsigned epoch = (unsigned)((unsigned long long)lane.len * changes + (place & 0xffff) >> 16);
        int page = at.sink + n * stratum + (int)(mix(place + epoch * 0x165667b1u) % (unsigned)stratum);
        atomicOr(&bitmap[page / 32], 1u << (page % 32));
        list[n] = page_entry(rt.kv_rows[(size_t)id * rt.max_pages + page], 0, PAGE_TOKENS);
    }
}
