// Which pages of a lane's cache stay and which leave: at a step, and when the cache becomes smaller.
//
// Both choose slots by buckets: a histogram of 65 gives the bucket at which there are enough, and slots of that bucket
// are taken in their order. Slots are dealt out to warps in runs, so that a warp's sums are in slot order.
#include "residency.cuh"

constexpr int THREADS = 512;
constexpr int WARPS = THREADS / 32;
constexpr int AT_ONCE = 4;          // slots that a thread has under way
constexpr int BATCH = 32 * AT_ONCE; // slots that a warp has under way
constexpr int EMPTY = BUCKETS - 1;  // bucket of an empty slot
constexpr int NONE = -1;            // of a slot that is not to be chosen

// ---- sets of numbers, as bitmaps

// Sum of `x` over this thread and those before it in its warp.
__device__ __forceinline__ int sum_up(int x, int thread) {
    for (int at = 1; at < 32; at *= 2) {
        int other = __shfl_up_sync(FULL, x, at);
        x += thread >= at ? other : 0;
    }
    return x;
}

// The lowest `n` bits of a word; none below 0, all from 32 on.
__device__ __forceinline__ unsigned bits_below(int n) { return n < 32 ? (1u << max(n, 0)) - 1 : FULL; }

// The bit of a word that `n` of its bits are below.
__device__ __forceinline__ int nth_bit(unsigned word, int n) {
    int at = 0;
#pragma unroll
    for (int width = 16; width > 0; width /= 2) {
        int below = __popc(word & ((1u << width) - 1));
        if (below <= n) {
            n -= below;
            word >>= width;
            at += width;
        }
    }
    return at;
}

// A bitmap in shared memory, and for each word how many numbers are in those before it.
struct Set {
    unsigned* words;
    int* before;
    int count; // of words

    // The one that `rank` others are less than. Looks at seven words at a time: few reads in a row.
    __device__ __forceinline__ int at(int rank) const {
        int low = 0;
        for (int width = count; width > 1;) {
            int step = (width + 7) / 8, steps = 0;
#pragma unroll
            for (int n = 1; n < 8; n++) {
                steps += low + n * step < count && before[low + n * step] <= rank;
            }
            low += steps * step;
            width = step;
        }
        return low * 32 + nth_bit(words[low], rank - before[low]);
    }

    // Fills in `before` and returns how many there are. Every thread calls it, behind a barrier, and has one behind it.
    // `sums` is shared, one a warp.
    __device__ __forceinline__ int index(int* sums) const {
        int warp = threadIdx.x / 32, thread = threadIdx.x % 32, all = 0;
#pragma unroll 1
        for (int first = 0; first < count; first += THREADS) {
            int w = first + threadIdx.x, own = w < count ? __popc(words[w]) : 0, sum = sum_up(own, thread);
            if (thread == 31) {
                sums[warp] = sum;
            }
            __syncthreads();
            int others = thread < WARPS ? sums[thread] : 0;
            sum += all + __reduce_add_sync(FULL, thread < warp ? others : 0);
            if (w < count) {
                before[w] = sum - own;
            }
            all += __reduce_add_sync(FULL, others);
            __syncthreads();
        }
        return all;
    }

    // Turns into the set of those below `end` that are not in it, and fills in `before`: one warp.
    __device__ __forceinline__ void invert(int end, int thread) {
        int all = 0;
#pragma unroll 1
        for (int w = thread; w - thread < count; w += 32) {
            unsigned own = w < count ? ~words[w] & bits_below(end - w * 32) : 0;
            int sum = sum_up(__popc(own), thread);
            if (w < count) {
                words[w] = own;
                before[w] = all + sum - __popc(own);
            }
            all += __shfl_sync(FULL, sum, 31);
        }
    }
};

// ---- slots

// A warp's slots, first..end.
struct Run {
    int first, end;
};

__device__ __forceinline__ Run run_of_warp(int slots) {
    int length = (slots + THREADS - 1) / THREADS * 32, first = threadIdx.x / 32 * length;
    return {first, min(first + length, slots)};
}

// The slots with the `goal` highest buckets: those above `bucket`, and of those in it the first ones up to `ties`.
struct Bar {
    int bucket, ties;
};

// A histogram of slots by bucket, as each warp reads it for itself: a thread has two buckets, from the highest down.
struct Histogram {
    int high, own, next; // the higher bucket; its slots, the next one's
    int sum;             // slots in this thread's buckets and all above them
    int all;

    __device__ __forceinline__ Histogram(const int* counts, int thread)
        : high(EMPTY - 2 * thread), own(counts[high]), next(counts[high - 1]) {
        sum = sum_up(own + next, thread);
        all = __shfl_sync(FULL, sum, 31) + counts[0];
    }

    // For a goal that is not above `all`.
    __device__ __forceinline__ Bar bar(int goal) const {
        unsigned reached = __ballot_sync(FULL, goal <= sum);
        if (reached == 0) {
            return {0, goal - __shfl_sync(FULL, sum, 31)};
        }
        int ties = goal - (sum - own - next), from = __ffs(reached) - 1;
        bool in_next = own < ties;
        int bucket = in_next ? high - 1 : high, inside = in_next ? ties - own : ties;
        return {__shfl_sync(FULL, bucket, from), __shfl_sync(FULL, inside, from)};
    }
};

// Of a thread's next slots: 32 apart.
__device__ __forceinline__ void load_buckets(int (&own)[AT_ONCE], const signed char* buckets, int first, int end) {
#pragma unroll
    for (int n = 0; n < AT_ONCE; n++) {
        own[n] = first + n * 32 < end ? buckets[first + n * 32] : NONE;
    }
}

// A warp's walk over its slots, which tells those that a bar chooses.
struct Walk {
    Bar bar;
    int above, ties; // slots passed that are above the bar, and in its bucket

    // Passes 32 slots, this thread's with bucket `own`: whether it is chosen, and as which of all.
    __device__ __forceinline__ bool next(int own, int thread, int& rank) {
        unsigned before = (1u << thread) - 1;
        unsigned higher = __ballot_sync(FULL, own > bar.bucket), equal = __ballot_sync(FULL, own == bar.bucket);
        int tie = ties + __popc(equal & before);
        rank = above + __popc(higher & before) + min(tie, bar.ties);
        above += __popc(higher);
        ties += __popc(equal);
        return own > bar.bucket || (own == bar.bucket && tie < bar.ties);
    }
};

// Tells the other warps what a walk over this one's run passes. `parts` is shared, one a warp.
__device__ __forceinline__ void announce(const signed char* buckets, Run run, Bar bar, int2* parts, int thread) {
    Walk walk = {bar, 0, 0};
    for (int first = run.first; first < run.end; first += BATCH) {
        int own[AT_ONCE], rank;
        load_buckets(own, buckets, first + thread, run.end);
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++) {
            walk.next(own[n], thread, rank);
        }
    }
    if (thread == 0) {
        parts[threadIdx.x / 32] = make_int2(walk.above, walk.ties);
    }
}

// A walk that has passed the runs before this warp's. Behind a barrier after `announce`.
__device__ __forceinline__ Walk walk_from(Bar bar, const int2* parts, int thread) {
    int2 part = thread < (int)threadIdx.x / 32 ? parts[thread] : make_int2(0, 0);
    return {bar, __reduce_add_sync(FULL, part.x), __reduce_add_sync(FULL, part.y)};
}

// ---- shared memory of a launch

// A set of numbers below `end`; `shared` is what is left, and gets less.
__device__ __forceinline__ Set set_in(unsigned*& shared, int end) {
    int words = (end + 31) / 32;
    Set set = {shared, (int*)shared + words, words};
    shared += 2 * words;
    return set;
}

// ---- resolve

__device__ __forceinline__ int score_bucket(float score) {
    float x = score * -4.0f;
    return x < (float)AGE_MAX ? (int)fmaxf(x, 0.0f) : AGE_MAX; // of no number, and of -inf, the last
}

// One (lane, head) of a step.
struct Step {
    Slots slots;
    Plane plane;
    const float* scores;  // by page; null where ages decide
    bool fades;           // ages are the best score buckets so far, each step one worse
    unsigned* list;       // selected pages' entries, in the order of pages
    Set selected;         // pages below `end`
    Set found;            // the selected pages' places in the list; first those of hits, then those of misses
    signed char* buckets; // of slots
    int* counts;          // of slots by bucket
    int end;              // of the pages that may be cached
};

// What lies in a thread's next slots: 32 apart.
struct Held {
    unsigned row[AT_ONCE], place[AT_ONCE], tag[AT_ONCE];
    int age[AT_ONCE];
    float score[AT_ONCE];

    __device__ __forceinline__ void load_rows(const Step& step, int first, int end) {
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++) {
            bool in = first + n * 32 < end;
            row[n] = in ? step.slots.rows[first + n * 32] : 0;
            place[n] = in ? step.slots.place(first + n * 32) : 0;
        }
    }

    __device__ __forceinline__ void load_tags(const Step& step, int first, int end) {
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++) {
            bool in = first + n * 32 < end;
            tag[n] = in ? step.plane.tags[place[n]] : 0;
            age[n] = in ? step.plane.ages[place[n]] : 0;
        }
    }

    __device__ __forceinline__ void load_scores(const Step& step) {
        if (step.scores) {
#pragma unroll
            for (int n = 0; n < AT_ONCE; n++) {
                score[n] = tag[n] ? step.scores[tag[n] - 1] : 0.0f;
            }
        }
    }

    // Hits get their entries, the others get older and are counted.
    __device__ __forceinline__ void mark(const Step& step, int first, int end) const {
        unsigned word[AT_ONCE];
        int before[AT_ONCE];
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++) {
            unsigned page = tag[n] - 1; // of an empty slot above them all
            bool in = page < (unsigned)step.end;
            word[n] = in ? step.selected.words[page / 32] : 0;
            before[n] = in ? step.selected.before[page / 32] : 0;
        }
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++) {
            int slot = first + n * 32;
            unsigned bit = 1u << ((tag[n] - 1) % 32);
            bool hit = word[n] & bit, empty = tag[n] == 0;
            if (end <= slot) {
                continue;
            }
            int older = min(age[n] + 1, AGE_MAX), scored = step.scores ? score_bucket(score[n]) : age[n];
            older = empty ? 0 : step.fades ? min(older, scored) : hit ? 0 : older;
            if (older != age[n]) {
                step.plane.ages[place[n]] = older;
            }
            int bucket = empty ? EMPTY : step.fades ? older : scored;
            step.buckets[slot] = hit ? NONE : bucket;
            if (hit) {
                int place = before[n] + __popc(word[n] & (bit - 1));
                step.list[place] = page_entry(row[n], 0, PAGE_TOKENS);
                atomicOr(&step.found.words[place / 32], 1u << (place % 32));
            } else {
                atomicAdd(&step.counts[bucket], 1);
            }
        }
    }
};

// The selected pages below the cache's end; nothing is found or counted yet.
__device__ __forceinline__ void read_selected(const Step& step, const unsigned* bitmap) {
#pragma unroll 1
    for (int w = threadIdx.x; w < step.selected.count; w += THREADS) {
        step.selected.words[w] = bitmap[w] & bits_below(step.end - w * 32);
    }
#pragma unroll 1
    for (int w = threadIdx.x; w < step.found.count; w += THREADS) {
        step.found.words[w] = 0;
    }
    for (int n = threadIdx.x; n < BUCKETS; n += THREADS) {
        step.counts[n] = 0;
    }
}

// Room for `count` fetches. Unlike atomicAdd, this lets the thread go on until it reads the answer.
__device__ __forceinline__ int take_fetches(const Residency& residency, int count) {
    int first;
    asm volatile("atom.relaxed.gpu.global.add.s32 %0, [%1], %2;"
                 : "=r"(first)
                 : "l"(residency.fetch_count), "r"(count)
                 : "memory");
    return first;
}

// Chosen slots first..first + THREADS, as far as they are in this warp's run, into `chosen`.
__device__ __forceinline__ void gather(const signed char* buckets, Run run, Walk walk, int first, int* chosen,
                                       int thread) {
    for (int slot = run.first + thread; slot - thread < run.end; slot += BATCH) {
        int own[AT_ONCE];
        load_buckets(own, buckets, slot, run.end);
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++) {
            int rank;
            if (walk.next(own[n], thread, rank) && (unsigned)(rank - first) < THREADS) {
                chosen[rank - first] = slot + n * 32;
            }
        }
    }
}

// Missing pages take the frames of the slots that the walk chooses, both ascending. These are gathered first, so that
// few warps look for the pages. `chosen` is shared, one a thread; every thread calls it.
__device__ __forceinline__ void replace(const Step& step, Run run, Walk walk, int misses, int* chosen, Fetch* fetches,
                                        int head, int thread) {
#pragma unroll 1
    for (int first = 0; first < misses; first += THREADS) {
        gather(step.buckets, run, walk, first, chosen, thread);
        __syncthreads();
        int rank = first + threadIdx.x;
        if (rank < misses) {
            int slot = chosen[threadIdx.x];
            unsigned row = step.slots.rows[slot], held = step.slots.place(slot);
            int place = step.found.at(rank);
            unsigned entry = step.list[place];
            int page = step.selected.at(place);
            step.plane.tags[held] = page + 1;
            step.plane.ages[held] = step.fades ? score_bucket(step.scores[page]) : 0;
            step.list[place] = coming_entry(row);
            fetches[rank] = {entry_row(entry), row, head};
        }
        __syncthreads();
    }
}

// Finds the selected pages that lanes with a cache keep in host memory: in a slot, or, for those that are in none, a
// slot whose page was not selected: empty ones first, then by age (or score) bucket, oldest first, then in slot order.
// Page lists get the slots' rows, those of missing pages as `coming_entry`, and `fetches` what has to be copied into
// them before Attend; the order of one block's fetches is fixed, that of blocks is not. The rule is kv::bucketed_lru's;
// ages of empty slots stay 0.
// A lane's selected pages are no more than its cache rows, and no page is in two slots. Lanes without a cache cost
// their blocks' start. Follows topk; `retrieve` follows before the next layer's.
// Grid (kv_heads, rows), 512 threads. Shared: 8 bytes for each 32 pages of a sequence and each 32 cache rows (rounded
// up), and 1 for each cache row.
// Bytes: rows, tags, ages and ages written, 10 for each slot, 2.5 MB at 1,536 slots x 160 (lane, head) pairs: 1 us. Its
// time is that of instructions, 900 a warp and two blocks on some multiprocessors, and of seven reads in a row. With
// overlap, four of them come before the kernel ahead has ended: nothing since the step began wrote what they read. With
// the way from node to node, 7 to 9 us (measured).
// Tags and ages that lay by row, not by slot, took 4 to 12 us more where lanes' rows alternate: blocks then write ages
// in the same sectors (measured).
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    resolve(const __grid_constant__ Runtime rt, int algorithm, int layer) {
    const Residency& residency = rt.residency;
    extern __shared__ unsigned shared[];
    __shared__ int counts[BUCKETS], sums[WARPS], first_fetch;
    __shared__ int2 parts[WARPS];
    __shared__ int chosen[THREADS];
    let_successor_start();
    int head = blockIdx.x, i = blockIdx.y, warp = threadIdx.x / 32, thread = threadIdx.x % 32;
    int id = rt.active[i]; // asked for while it is not known yet whether there is one
    const Lane& lane = rt.lanes[id];
    Cache* cache = residency.caches + id;
    int slots = i < *rt.n_active && lane.algorithm == algorithm ? cache->rows : 0;
    if (slots == 0) {
        wait_for_predecessor();
        return;
    }
    size_t number = (size_t)i * rt.kv_heads + head;
    Step step;
    step.slots = slots_of(rt, id);
    step.plane = plane_of(rt, layer, head);
    step.scores = residency.eviction != BY_AGE ? rt.reduced + number * rt.max_pages : nullptr;
    step.fades = residency.eviction == FADING_SCORE;
    step.list = rt.page_list + number * rt.max_pages + lane.selection.sink_pages;
    step.end = cache->end;
    step.counts = counts;
    unsigned* left = shared;
    step.selected = set_in(left, step.end);
    step.found = set_in(left, slots); // no more pages are selected than there are slots
    step.buckets = (signed char*)left;
    Run run = run_of_warp(slots);
    Held held;
    held.load_rows(step, run.first + thread, run.end);
    held.load_tags(step, run.first + thread, run.end);
    wait_for_predecessor();
    held.load_scores(step);
    read_selected(step, rt.selected + number * rt.bitmap_words);
    __syncthreads();
    int wanted = step.selected.index(sums);
    step.found.count = (wanted + 31) / 32;
    for (int first = run.first; first < run.end; first += BATCH) {
        if (first != run.first) {
            held.load_rows(step, first + thread, run.end);
            held.load_tags(step, first + thread, run.end);
            held.load_scores(step);
        }
        held.mark(step, first + thread, run.end);
    }
    __syncthreads();
    Histogram histogram(counts, thread);
    int hits = slots - histogram.all, misses = wanted - hits, fetched = 0;
    if (threadIdx.x == 0) {
        fetched = misses ? take_fetches(residency, misses) : 0;
        atomicAdd(&cache->hits, (unsigned)hits);
        atomicAdd(&cache->misses, (unsigned)misses);
    }
    if (misses == 0) {
        return;
    }
    Bar bar = histogram.bar(misses);
    announce(step.buckets, run, bar, parts, thread);
    if (warp == WARPS - 1) {
        step.found.invert(wanted, thread);
    }
    if (threadIdx.x == 0) {
        first_fetch = fetched;
    }
    __syncthreads();
    replace(step, run, walk_from(bar, parts, thread), misses, chosen, residency.fetches + first_fetch, head, thread);
}

// ---- the cache's size

// Cuts a lane's cache of `rows` rows down to its first `kept`. For each (layer, head) the `kept` youngest pages stay,
// of one age those in the lower slots: where they are, or, from slots that go, in those whose pages go, both ascending.
// What slots that go hold means nothing afterwards.
// Grid (kv_heads, layers), 512 threads. Shared: 16 bytes for each 32 rows (rounded up), and 1 for each row.
// Bytes: frames that move, read and written: at most half the cache, 1.6 GB at 1,536 rows of 1 MiB, 0.55 ms at 3 TB/s.
extern "C" __global__ void __launch_bounds__(THREADS, 2)
    shrink_cache(const __grid_constant__ Runtime rt, int lane, int rows, int kept) {
    extern __shared__ unsigned shared[];
    __shared__ int counts[BUCKETS], sums[WARPS];
    __shared__ int2 parts[WARPS];
    int head = blockIdx.x, layer = blockIdx.y, warp = threadIdx.x / 32, thread = threadIdx.x % 32;
    Slots slots = slots_of(rt, lane);
    Plane plane = plane_of(rt, layer, head);
    unsigned* left = shared;
    Set movers = set_in(left, rows), gaps = set_in(left, rows);
    signed char* youth = (signed char*)left;
    for (int n = threadIdx.x; n < BUCKETS; n += THREADS) {
        counts[n] = 0;
    }
    __syncthreads();
    for (int slot = threadIdx.x; slot < rows; slot += THREADS) {
        unsigned place = slots.place(slot);
        int bucket = plane.tags[place] ? EMPTY - plane.ages[place] : 0;
        youth[slot] = bucket;
        atomicAdd(&counts[bucket], 1);
    }
    __syncthreads();
    Run run = run_of_warp(rows);
    Bar bar = Histogram(counts, thread).bar(kept);
    announce(youth, run, bar, parts, thread);
    __syncthreads();
    Walk walk = walk_from(bar, parts, thread);
    for (int first = run.first; first < run.end; first += 32) {
        int slot = first + thread, rank, own = slot < run.end ? youth[slot] : NONE;
        bool stays = walk.next(own, thread, rank) && own > 0;
        unsigned moving = __ballot_sync(FULL, stays && kept <= slot);
        unsigned gap = __ballot_sync(FULL, !stays && slot < kept);
        if (thread == 0) {
            movers.words[first / 32] = moving;
            gaps.words[first / 32] = gap;
        }
    }
    __syncthreads();
    int moves = movers.index(sums);
    gaps.index(sums);
    int pieces = frame_pieces(rt);
    for (int n = warp; n < moves; n += WARPS) {
        int mover = movers.at(n), gap = gaps.at(n);
        copy_pieces(frame(rt, slots.rows[mover], layer, head), frame(rt, slots.rows[gap], layer, head), pieces, thread);
        if (thread == 0) {
            unsigned from = slots.place(mover), to = slots.place(gap);
            plane.tags[to] = plane.tags[from];
            plane.ages[to] = plane.ages[from];
        }
    }
    // A gap that nothing moved into was empty before: where a page goes, `kept` others stay.
}

// What a lane's slots from `kept` on hold, behind set_slots: `joins` [count][row, tag], the tag (0, or a page plus 1
// that the row holds for all layers and heads). A page of which nothing else is known goes first.
// Grid (count / 256, rounded up; layers * kv_heads), 256 threads.
extern "C" __global__ void join_cache(const __grid_constant__ Runtime rt, const uint2* joins, int lane, int kept,
                                      int count) {
    int n = blockIdx.x * blockDim.x + threadIdx.x;
    if (n < count) {
        unsigned tag = joins[n].y, place = slots_of(rt, lane).place(kept + n);
        Plane plane = plane_of(rt, 0, blockIdx.y);
        plane.tags[place] = tag;
        plane.ages[place] = tag ? AGE_MAX : 0;
    }
}
