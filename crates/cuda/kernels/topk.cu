// The pages that a step attends, chosen by score.
//
// Scores are logarithms of probabilities. They are counted in bins of 1/64 from 0 down: pages in bins before the one
// that holds the k-th are chosen, those in that bin (mostly a few) compete by their exact scores. Where too many share
// it, the exact scores are narrowed down bit by bit.
#include "block.cuh"

constexpr int TOPK_THREADS = 512;
constexpr int TOPK_WARPS = TOPK_THREADS / 32;
constexpr int AT_ONCE = 8;                // scores that a thread has under way
constexpr float BINS_OF_ONE = 64.0f;      // bins in which a score falls by 1
constexpr int RIVALS_MOST = TOPK_THREADS; // pages of one bin that compete by rank

// Ascends where the score descends, in the total order of f32.
__device__ __forceinline__ unsigned descending(float score) {
    unsigned bits = __float_as_uint(score);
    return bits >> 31 ? bits : ~bits & 0x7fffffff;
}

__device__ __forceinline__ int bin_of(float score) {
    return (int)fminf(fmaxf(score * -BINS_OF_ONE, 0.0f), BINS - 1.0f);
}

// Candidates of a (lane, KV head): pages first..end; score[page] of each.
struct Candidates {
    const float* scores;
    int first, end;

    __device__ __forceinline__ bool has(int page) const { return first <= page && page < end; }
};

// A page and its exact order among others.
struct Rival {
    unsigned key;
    int page;
};

// Sets the bits of pages in bins before `bin`, a warp a word; collects those in it. Every thread calls it.
__device__ __forceinline__ int choose_before(const Candidates& all, int bin, unsigned* chosen, Rival* rivals) {
    __shared__ int count;
    if (threadIdx.x == 0) {
        count = 0;
    }
    __syncthreads();
    int thread = threadIdx.x % 32;
    for (int base = threadIdx.x - thread; base < all.end; base += AT_ONCE * TOPK_THREADS) {
        float x[AT_ONCE];
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++) {
            int page = base + n * TOPK_THREADS + thread;
            x[n] = all.has(page) ? all.scores[page] : 0.0f;
        }
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++) {
            int page = base + n * TOPK_THREADS + thread, own = all.has(page) ? bin_of(x[n]) : BINS;
            unsigned before = __ballot_sync(FULL, own < bin);
            if (thread == 0 && page < all.end) {
                chosen[page / 32] = before;
            }
            if (own == bin) {
                int at = atomicAdd(&count, 1);
                if (at < RIVALS_MOST) {
                    rivals[at] = {descending(x[n]), page};
                }
            }
        }
    }
    __syncthreads();
    return count;
}

__device__ __forceinline__ void set_bit(unsigned* chosen, int page) { atomicOr(&chosen[page / 32], 1u << (page % 32)); }

// Of up to as many rivals as threads, the k best are chosen.
__device__ __forceinline__ void choose_rivals(const Rival* rivals, int count, int k, unsigned* chosen) {
    if (threadIdx.x < count) {
        Rival own = rivals[threadIdx.x];
        int rank = 0;
        for (int n = 0; n < count; n++) {
            Rival other = rivals[n];
            rank += other.key < own.key || (other.key == own.key && other.page < own.page);
        }
        if (rank < k) {
            set_bit(chosen, own.page);
        }
    }
    __syncthreads();
}

// The k best of a bin that many pages share: passes of 11 bits over the keys narrow them down to the k-th, then those
// before it are chosen, and of its equals the first ones by page.
__device__ __noinline__ void choose_in_bin(const Candidates& all, int bin, int k, int* histogram, unsigned* chosen) {
    __shared__ int sums[TOPK_WARPS];
    __shared__ Crossing<int> found;
    unsigned low = 0, high = FULL;
    int shift = 21;
    while (true) {
        for (int n = threadIdx.x; n < BINS; n += TOPK_THREADS) {
            histogram[n] = 0;
        }
        __syncthreads();
        for (int page = all.first + threadIdx.x; page < all.end; page += TOPK_THREADS) {
            unsigned key = descending(all.scores[page]);
            if (bin_of(all.scores[page]) == bin && low <= key && key <= high) {
                atomicAdd(&histogram[(key - low) >> shift], 1);
            }
        }
        __syncthreads();
        crossing<TOPK_THREADS>(histogram, k, sums, &found);
        k -= found.before;
        low += (unsigned)found.bin << shift;
        high = low + ((1u << shift) - 1);
        if (k == found.inside || shift == 0) {
            break;
        }
        shift = shift == 21 ? 10 : 0;
    }
    for (int first = all.first, taken = 0; first < all.end; first += TOPK_THREADS) {
        int page = first + threadIdx.x, total;
        unsigned key = page < all.end ? descending(all.scores[page]) : 0;
        bool own = page < all.end && bin_of(all.scores[page]) == bin;
        bool equal = own && low <= key && key <= high;
        int before = taken + sum_before<TOPK_THREADS>((int)equal, sums, total);
        if ((own && key < low) || (equal && before < k)) {
            set_bit(chosen, page);
        }
        taken += total;
    }
    __syncthreads();
}

// Sets the bits of the k best candidates (score descending, page ascending) in `chosen`.
__device__ __forceinline__ void choose(const Candidates& all, int k, unsigned* chosen) {
    __shared__ int histogram[BINS], sums[TOPK_WARPS];
    __shared__ Rival rivals[RIVALS_MOST];
    __shared__ Crossing<int> found;
    for (int n = threadIdx.x; n < BINS; n += TOPK_THREADS) {
        histogram[n] = 0;
    }
    __syncthreads();
    for (int first = all.first + threadIdx.x; first < all.end; first += AT_ONCE * TOPK_THREADS) {
        float x[AT_ONCE];
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++) {
            x[n] = first + n * TOPK_THREADS < all.end ? all.scores[first + n * TOPK_THREADS] : 0.0f;
        }
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++) {
            if (first + n * TOPK_THREADS < all.end) {
                atomicAdd(&histogram[bin_of(x[n])], 1);
            }
        }
    }
    __syncthreads();
    crossing<TOPK_THREADS>(histogram, k, sums, &found);
    int bin = found.bin, rest = k - found.before;
    int rivals_count = choose_before(all, bin, chosen, rivals);
    if (rivals_count <= RIVALS_MOST) {
        choose_rivals(rivals, rivals_count, rest, chosen);
    } else {
        choose_in_bin(all, bin, rest, histogram, chosen);
    }
}

// Bits of word `w` that stand for pages `first..end`.
__device__ __forceinline__ unsigned bits_within(int w, int first, int end) {
    int low = min(max(first - w * 32, 0), 32), high = min(max(end - w * 32, 0), 32);
    unsigned below_low = low == 32 ? FULL : (1u << low) - 1, below_high = high == 32 ? FULL : (1u << high) - 1;
    return below_high & ~below_low;
}

// The list's pages, ascending, and how many: chosen ones and all outside the candidates.
__device__ int list_pages(const Candidates& all, const unsigned* chosen, int pages, unsigned* list) {
    __shared__ int sums[TOPK_WARPS];
    int count = 0;
    for (int first = 0; first < (pages + 31) / 32; first += TOPK_THREADS) {
        int w = first + threadIdx.x, total;
        unsigned listed = bits_within(w, 0, all.first) | bits_within(w, all.end, pages);
        listed |= w < (all.end + 31) / 32 ? chosen[w] : 0;
        int at = count + sum_before<TOPK_THREADS>(__popc(listed), sums, total);
        for (; listed; listed &= listed - 1) {
            list[at++] = w * 32 + __ffs(listed) - 1;
        }
        count += total;
    }
    __syncthreads();
    return count;
}

// The k best candidates of a (lane, KV head), as a bitmap and as the page list with the exact pages around them;
// everything is listed where all is exact. Grid (kv_heads, rows), 512 threads. Shared memory: one bitmap, and 12 KiB.
// Bytes: scores once, and again from the caches, 28 KiB a block at 7K candidates, 4.6 MB at 20 lanes x 8 heads: 2 us;
// its time is that of reads in a row, a dozen barriers and 1,300 instructions a warp, about 7 us.
extern "C" __global__ void __launch_bounds__(TOPK_THREADS)
    topk(const __grid_constant__ Runtime rt, int algorithm) {
    extern __shared__ unsigned chosen[];
    let_successor_start();
    wait_for_predecessor();
    int head = blockIdx.x, i = blockIdx.y;
    if (*rt.n_active <= i) {
        return;
    }
    int id = rt.active[i];
    const Lane& lane = rt.lanes[id];
    if (lane.algorithm != algorithm) {
        return;
    }
    int len = lane.len, pages = pages_of(len), count = pages;
    Selected at = selected_at(lane.selection, len);
    size_t number = (size_t)i * rt.kv_heads + head;
    unsigned* list = rt.page_list + number * rt.max_pages;
    unsigned* bitmap = rt.selected + number * rt.bitmap_words;
    Candidates all = {rt.reduced + number * rt.max_pages, at.sink, at.indexed};
    if (at.pages) {
        choose(all, at.k, chosen);
        count = list_pages(all, chosen, pages, list);
    } else {
        for (int page = threadIdx.x; page < pages; page += TOPK_THREADS) {
            list[page] = page;
        }
    }
    for (int w = threadIdx.x; w < rt.bitmap_words; w += TOPK_THREADS) {
        bitmap[w] = at.pages && w < (at.indexed + 31) / 32 ? chosen[w] : 0;
    }
    const unsigned* rows = rt.kv_rows + (size_t)id * rt.max_pages;
    // Each thread turns pages that it or, behind a barrier, another one wrote into entries.
    for (int n = threadIdx.x; n < count; n += TOPK_THREADS) {
        int page = list[n];
        list[n] = page_entry(rows[page], 0, min(PAGE_TOKENS, len - page * PAGE_TOKENS));
    }
    if (threadIdx.x == 0) {
        rt.page_list_len[number] = count;
    }
}
