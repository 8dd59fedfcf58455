// What `sample` and `score_tokens` share: a row of logits in parts, each scanned by one block; the last one to arrive
// joins them. Parts do not depend on the batch, so a row alone gives the same bits as in one.
#pragma once

#include "runtime.cuh"

constexpr int PARTS = 16;
constexpr int SCAN_THREADS = 512;
constexpr int SCAN_WARPS = SCAN_THREADS / 32;
constexpr int AT_ONCE = 8; // logits that a thread has under way
constexpr int SCORE_ROWS = 64; // rows that one `score_tokens` takes; mirrored in src/sample.rs
constexpr float LEAST = -3.4e38f; // below every finite logit: no difference of infinities arises

static_assert(PARTS * TOP_MAX <= SCAN_THREADS, "a thread for each of the parts' most likely tokens");

// A token by its logit: larger is more likely, equal logits go to the lowest id. Zero is none.
typedef unsigned long long Ranked;

__device__ __forceinline__ Ranked ranked(float x, int token) {
    unsigned bits = __float_as_uint(x + 0.0f); // minus zero equals zero
    unsigned ascending = bits >> 31 ? ~bits : bits | 0x80000000u;
    return (Ranked)ascending << 32 | (unsigned)~token;
}

__device__ __forceinline__ int token_of(Ranked x) { return (int)~(unsigned)x; }

__device__ __forceinline__ float logit_of(Ranked x) {
    unsigned ascending = x >> 32;
    return __uint_as_float(ascending >> 31 ? ascending & 0x7fffffff : ~ascending);
}

// What a part's block leaves for the last one.
struct Part {
    float most, sum;            // largest logit, and the sum of e^(logit - most)
    Ranked best;                // of the allowed tokens
    Ranked top[TOP_MAX];        // most likely tokens, zero behind the last
    float of_warps[SCAN_WARPS]; // largest allowed logit of each warp
    int ahead;                  // `score_tokens`: tokens more likely than the one that is scored
    int drawn;                  // `sample_draw`: the token that the part would draw, -1 for none
    double score;               // its logit with noise
    double mass;                // e^(scaled logit) summed over its tokens, or those that the filters keep for certain
};

constexpr int SCALED_BINS = 8192; // of scaled logits, from 0 down

// A row's scratch between blocks and kernels. `arrived`, `listed` and `bins` are zero between ops.
struct Head {
    int arrived;
    int suppresses;        // whether the lane's suppressed tokens are out
    int draws;             // whether `sample_draw` chooses the token
    int counts;            // whether `sample_bins` has to tell it which bins
    int best;              // the most likely token
    float log_sum;
    float largest, scale;  // a scaled logit is (logit - largest) * scale
    float least;           // those below this are filtered out
    int first, last;       // bins of scaled logits: those before `first` are kept, those behind `last` are out
    int before;            // tokens in bins before `first`
    int listed;            // tokens in the other ones, which the filters decide on
    double mass;           // e^(scaled logit) summed over all tokens
    Part parts[PARTS];
    int bins[SCALED_BINS]; // tokens in each
};

// One for each lane, or row of a scored block; lists of tokens [max_lanes][vocab] follow. Mirrored in src/sample.rs.
constexpr int HEAD_BYTES = 8192 + 4 * SCALED_BINS;
static_assert(sizeof(Head) <= HEAD_BYTES, "a head has room");

__device__ __forceinline__ Head& head_of(const Runtime& rt, int row) {
    return *(Head*)(rt.sample_scratch + (size_t)row * HEAD_BYTES);
}

__device__ __forceinline__ int* list_of(const Runtime& rt, int row) {
    size_t heads = rt.max_lanes < SCORE_ROWS ? SCORE_ROWS : rt.max_lanes;
    return (int*)(rt.sample_scratch + heads * HEAD_BYTES) + (size_t)row * rt.vocab;
}

// Some of a row's logits: those of tokens first, first + step, ... below `end`, minus infinity from there on.
struct Batch {
    float x[AT_ONCE];
};

// A row of logits with what changes them: null where nothing does.
struct Source {
    const float* logits;
    const int* counts;
    const float* bias;
    const unsigned* suppressed;
    float repetition, presence, frequency;

    static __device__ __forceinline__ Source plain(const float* logits) {
        return {logits, nullptr, nullptr, nullptr, 1.0f, 0.0f, 0.0f};
    }

    __device__ __forceinline__ bool is_plain() const { return !counts && !bias && !suppressed; }

    // Rounds as the CPU does: no fused multiply-add.
    __device__ __forceinline__ float penalised(float x, int seen) const {
        int count = seen & (IN_PROMPT - 1);
        if (seen) {
            x = x > 0.0f ? x / repetition : x * repetition;
        }
        return count ? __fsub_rn(__fsub_rn(x, __fmul_rn(frequency, (float)count)), presence) : x;
    }

    __device__ __forceinline__ float at(int token) const {
        float x = logits[token];
        x = counts ? penalised(x, counts[token]) : x;
        x = bias ? x + bias[token] : x;
        return suppressed && suppressed[token / 32] >> (token % 32) & 1 ? -INFINITY : x;
    }

    // Reads of a kind are under way together: of penalties by halves, for which there are registers.
    __device__ __forceinline__ Batch batch(int first, int step, int end) const {
        Batch out;
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++) {
            out.x[n] = first + n * step < end ? logits[first + n * step] : -INFINITY;
        }
#pragma unroll
        for (int half = 0; counts && half < AT_ONCE; half += AT_ONCE / 2) {
            int seen[AT_ONCE / 2];
#pragma unroll
            for (int n = 0; n < AT_ONCE / 2; n++) {
                int token = first + (half + n) * step;
                seen[n] = token < end ? counts[token] : 0;
            }
#pragma unroll
            for (int n = 0; n < AT_ONCE / 2; n++) {
                out.x[half + n] = penalised(out.x[half + n], seen[n]);
            }
        }
        if (bias) {
#pragma unroll
            for (int n = 0; n < AT_ONCE; n++) {
                out.x[n] += first + n * step < end ? bias[first + n * step] : 0.0f;
            }
        }
        if (suppressed) {
            exclude(suppressed, true, first, step, end, out);
        }
        return out;
    }

    // Minus infinity for tokens whose bit of `mask` is `out`.
    static __device__ __forceinline__ void exclude(const unsigned* mask, bool out, int first, int step, int end,
                                                   Batch& batch) {
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++) {
            int token = first + n * step;
            bool bit = token < end ? mask[token / 32] >> (token % 32) & 1 : !out;
            batch.x[n] = bit == out ? -INFINITY : batch.x[n];
        }
    }
};

// Tokens first..end of part `part`: whole words of masks, and whole calls of the noise generator.
struct Tokens {
    int first, end;

    __device__ __forceinline__ Tokens(int vocab, int part) {
        int each = (vocab + PARTS * 32 - 1) / (PARTS * 32) * 32;
        first = min(part * each, vocab);
        end = min(first + each, vocab);
    }
};

// ---- over a block

__device__ __forceinline__ Ranked warp_best(Ranked x) {
    unsigned high = __reduce_max_sync(FULL, (unsigned)(x >> 32));
    unsigned low = __reduce_max_sync(FULL, x >> 32 == high ? (unsigned)x : 0);
    return (Ranked)high << 32 | low;
}

__device__ __forceinline__ Ranked block_best(Ranked x) {
    __shared__ Ranked best[SCAN_WARPS];
    x = warp_best(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        best[threadIdx.x / 32] = x;
    }
    __syncthreads();
    return warp_best(best[threadIdx.x % SCAN_WARPS]);
}

// e^x in three instructions, off by at most 2^-22 of itself for the x of large terms.
__device__ __forceinline__ float exp_near(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x * 1.44269504f));
    return y;
}

// Sums of e^(logit - most), joined over the warp.
__device__ __forceinline__ void warp_join(float& most, float& sum) {
    float own = most;
    most = warp_max(own);
    sum = warp_sum(sum * exp_near(own - most));
}

// A thread's most likely token after `before`, among those that the whole warp looks through for it.
__device__ __forceinline__ Ranked next_best(const Source& source, Tokens tokens, int thread, Ranked before) {
    Ranked next = 0;
    for (int token = tokens.first + thread + threadIdx.x % 32 * SCAN_THREADS; token < tokens.end;
         token += 32 * SCAN_THREADS) {
        Ranked x = ranked(source.at(token), token);
        next = x < before && next < x ? x : next;
    }
    return warp_best(next);
}

// The part's `count` most likely tokens: whoever owns the best one looks for its next. `own` is the thread's best.
__device__ __forceinline__ void list_top(const Source& source, Tokens tokens, int count, Ranked own, Ranked* top) {
    for (int n = 0; n < count; n++) {
        Ranked best = block_best(own);
        if (threadIdx.x == 0) {
            top[n] = best;
        }
        int owner = best ? (token_of(best) - tokens.first) % SCAN_THREADS : -1;
        if (owner / 32 == (int)threadIdx.x / 32 && 0 <= owner) {
            Ranked next = next_best(source, tokens, owner, best);
            own = owner == threadIdx.x ? next : own;
        }
    }
}

// A thread's most likely token, the first of equals; tokens come in ascending order.
struct Best {
    float x;
    int token;

    __device__ __forceinline__ void consider(const Batch& batch, int first) {
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++) {
            if (batch.x[n] > x) {
                x = batch.x[n];
                token = first + n * SCAN_THREADS;
            }
        }
    }
};

// Scans a part: everything of `Part` but what is drawn. With SCORES, counts what is more likely than token `target`.
// Bytes: the logits once.
template <bool SCORES>
__device__ __forceinline__ void scan(const Source& source, const unsigned* mask, Tokens tokens, int top_count,
                                     int target, Part& part) {
    __shared__ float mosts[SCAN_WARPS], sums[SCAN_WARPS];
    __shared__ int aheads[SCAN_WARPS];
    float most = LEAST, sum = 0.0f, mark = SCORES ? source.at(target) : 0.0f;
    int ahead = 0, start = tokens.first + threadIdx.x;
    Best own = {-INFINITY, start}, allowed = own;
    for (int first = start; first < tokens.end; first += AT_ONCE * SCAN_THREADS) {
        Batch batch = source.batch(first, SCAN_THREADS, tokens.end);
        float larger = most, added = 0.0f;
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++) {
            larger = fmaxf(larger, batch.x[n]);
        }
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++) {
            added += exp_near(batch.x[n] - larger);
            if (SCORES) {
                ahead += batch.x[n] > mark || (batch.x[n] == mark && first + n * SCAN_THREADS < target);
            }
        }
        sum = sum * exp_near(most - larger) + added;
        most = larger;
        own.consider(batch, first);
        if (mask) {
            Source::exclude(mask, false, first, SCAN_THREADS, tokens.end, batch);
            allowed.consider(batch, first);
        }
    }
    allowed = mask ? allowed : own;
    int warp = threadIdx.x / 32, thread = threadIdx.x % 32;
    warp_join(most, sum);
    float of_warp = warp_max(allowed.x);
    ahead = SCORES ? __reduce_add_sync(FULL, ahead) : 0;
    if (thread == 0) {
        mosts[warp] = most;
        sums[warp] = sum;
        aheads[warp] = ahead;
        part.of_warps[warp] = of_warp;
    }
    Ranked best = block_best(start < tokens.end ? ranked(allowed.x, allowed.token) : 0); // and a barrier
    if (warp == 0) {
        most = thread < SCAN_WARPS ? mosts[thread] : LEAST;
        sum = thread < SCAN_WARPS ? sums[thread] : 0.0f;
        warp_join(most, sum);
        ahead = __reduce_add_sync(FULL, thread < SCAN_WARPS ? aheads[thread] : 0);
        if (thread == 0) {
            part.most = most;
            part.sum = sum;
            part.ahead = ahead;
            part.best = best;
        }
    }
    if (top_count > 0) {
        list_top(source, tokens, top_count, start < tokens.end ? ranked(own.x, own.token) : 0, part.top);
    }
}

// Whether all other blocks of the row have left their parts: then this one reads them, past the L1 cache. Every thread
// calls it.
__device__ __forceinline__ bool is_last(Head& head) {
    __shared__ bool last;
    __syncthreads();
    if (threadIdx.x == 0) {
        int before; // what the block wrote before the barrier comes before this, and what it reads after it, after
        asm volatile("atom.add.acq_rel.gpu.global.s32 %0, [%1], 1;" : "=r"(before) : "l"(&head.arrived) : "memory");
        last = before == PARTS - 1;
        if (last) {
            head.arrived = 0;
        }
    }
    __syncthreads();
    return last;
}

// Logarithm of the sum of e^logit over the parts. Every thread calls it.
__device__ __forceinline__ float log_sum_of(const Head& head) {
    int part = threadIdx.x % PARTS;
    bool has = threadIdx.x % 32 < PARTS;
    float most = has ? __ldcg(&head.parts[part].most) : LEAST, sum = has ? __ldcg(&head.parts[part].sum) : 0.0f;
    warp_join(most, sum);
    return most + logf(sum);
}

// The `count` most likely of the parts' most likely tokens, in order: token and log-probability.
__device__ __forceinline__ void join_top(const Head& head, int count, float log_sum, int* tokens, float* logprobs) {
    __shared__ Ranked all[PARTS * TOP_MAX];
    int candidates = PARTS * count;
    __syncthreads();
    if (threadIdx.x < candidates) {
        all[threadIdx.x] = __ldcg(&head.parts[threadIdx.x / count].top[threadIdx.x % count]);
    }
    __syncthreads();
    Ranked own = threadIdx.x < candidates ? all[threadIdx.x] : 0;
    if (own) {
        int rank = 0;
        for (int n = 0; n < candidates; n++) {
            rank += all[n] > own;
        }
        if (rank < count) {
            tokens[rank] = token_of(own);
            logprobs[rank] = logit_of(own) - log_sum;
        }
    }
}
