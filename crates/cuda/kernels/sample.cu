// Choosing tokens: backend/src/cpu/sample.rs is the truth. One kernel scans the logits and chooses where nothing is
// drawn; for draws, a second one looks where filters may cut, and a third one draws. Also how a lane starts.
#include "filters.cuh"
#include "gumbel.cuh"

constexpr int LISTED_STAGED = 7168; // listed tokens whose logits are kept in shared memory

// Who draws: [lanes, then record numbers], or (null) the active lanes, for the step's records.
struct Target {
    const int* lanes;
    LaneOutput* records;
};

// One lane's work.
struct Row {
    int id;
    const float* logits;
    LaneOutput* record;
    bool is_prefill;
};

__device__ __forceinline__ bool row_of(const Runtime& rt, const View& logits, const Target& target, Row& row) {
    int i = blockIdx.y;
    row.logits = (const float*)logits.data;
    row.is_prefill = target.lanes != nullptr;
    if (row.is_prefill) {
        row.id = target.lanes[i];
        row.record = target.records + target.lanes[gridDim.y + i];
        return true;
    }
    if (*rt.n_active <= i) {
        return false;
    }
    row.id = rt.active[i];
    row.record = rt.output + (size_t)(*rt.step & 1) * rt.max_lanes + i;
    row.logits += (size_t)i * rt.vocab;
    return true;
}

__device__ __forceinline__ const unsigned* mask_of(const Runtime& rt, int id) {
    return rt.lanes[id].masked ? rt.mask + (size_t)id * rt.mask_words : nullptr;
}

// Whether suppressed tokens are out: not where the mask has no others. Every thread calls it.
__device__ __forceinline__ bool suppresses(const Runtime& rt, int id) {
    const Lane& lane = rt.lanes[id];
    if (!lane.sampling.suppresses || lane.sampling.min_tokens <= lane.generated) {
        return false;
    }
    const unsigned *mask = mask_of(rt, id), *suppressed = rt.suppressed + (size_t)id * rt.mask_words;
    bool others = !mask;
    for (int w = threadIdx.x; mask && w < rt.mask_words; w += SCAN_THREADS) {
        others |= (mask[w] & ~suppressed[w]) != 0;
    }
    return __syncthreads_or(others);
}

__device__ __forceinline__ Source source_of(const Runtime& rt, const Row& row, bool suppresses) {
    const Sampling& s = rt.lanes[row.id].sampling;
    size_t first = (size_t)row.id * rt.vocab;
    return {row.logits,
            s.penalised ? rt.counts + first : nullptr,
            s.biased ? rt.bias + first : nullptr,
            suppresses ? rt.suppressed + (size_t)row.id * rt.mask_words : nullptr,
            s.repetition,
            s.presence,
            s.frequency};
}

// Writes the token and what the lane becomes by it: one thread, when all others are done with the lane.
__device__ __forceinline__ void finish(const Runtime& rt, const Row& row, const Source& source, float log_sum,
                                       int token) {
    Lane& lane = rt.lanes[row.id];
    LaneOutput& record = *row.record;
    const Lane before = lane; // all reads at once, before writes that might be of the same memory
    float logprob = source.at(token) - log_sum;
    record.lane = row.id;
    record.token = token;
    record.logprob = logprob;
    record.exact_tokens = row.is_prefill ? before.len : exact_tokens(before.selection, before.len);
    record.mass = before.mass_count > 0 ? (float)(before.mass / before.mass_count) : -1.0f;
    record.top_count = before.sampling.top_count;
    Cache cache = rt.residency.caches[row.id];
    record.hits = row.is_prefill ? 0 : cache.hits;
    record.misses = row.is_prefill ? 0 : cache.misses;
    lane.forced = -1;
    lane.masked = 0;
    lane.token = token;
    if (before.prompt_outputs > 0) {
        lane.prompt_outputs = before.prompt_outputs - 1;
        return;
    }
    lane.generated = before.generated + 1;
    if (before.sampling.penalised) {
        atomicAdd(&rt.counts[(size_t)row.id * rt.vocab + token], 1);
    }
}

// Lists one of a warp's tokens, where asked to, in no order.
__device__ __forceinline__ void list_token(bool listed, int token, Head& head, int* list) {
    unsigned those = __ballot_sync(FULL, listed);
    if (!those) {
        return;
    }
    int thread = threadIdx.x % 32, at = 0;
    if (thread == 0) {
        at = atomicAdd(&head.listed, __popc(those));
    }
    at = __shfl_sync(FULL, at, 0) + __popc(those & ((1u << thread) - 1));
    if (listed) {
        list[at] = token;
    }
}

// Draws among the part's tokens that are kept for certain, adds up their masses, and lists those that the filters
// decide on.
__device__ __forceinline__ void draw_part(const Scaled& scaled, const Lane& lane, Tokens tokens, Head& head, int* list,
                                          Part& part) {
    float least = head.least, drawn_least = min_p_bound(lane.sampling);
    int first_bin = head.first, last_bin = head.last;
    bool draws = 0 < first_bin, lists = first_bin <= last_bin;
    Drawn own;
    double mass = 0.0;
    for (int first = tokens.first + threadIdx.x; first - (int)threadIdx.x % 32 < tokens.end;
         first += SCAN_THREADS * AT_ONCE) {
        Batch batch = scaled.batch(first, SCAN_THREADS, tokens.end);
        float kept = 0.0f;
        // By halves, in one piece of code: what it takes to read code shows.
#pragma unroll 1
        for (int half = 0; half < AT_ONCE; half += AT_ONCE / 2) {
            int start = first + half * SCAN_THREADS;
            if (draws) {
                unsigned words[AT_ONCE / 2];
                words_of(lane, start, words);
#pragma unroll
                for (int n = 0; n < AT_ONCE / 2; n++) {
                    if (bin_of(batch.x[n]) < first_bin) {
                        kept += lists ? expf(batch.x[n]) : 0.0f;
                        if (drawn_least <= batch.x[n]) {
                            own.consider(batch.x[n], start + n * SCAN_THREADS, words[n]);
                        }
                    }
                }
            }
#pragma unroll
            for (int n = 0; lists && n < AT_ONCE / 2; n++) {
                float x = batch.x[n];
                int bin = bin_of(x);
                bool listed = first_bin <= bin && bin <= last_bin && least <= x && x > -INFINITY;
                list_token(listed, start + n * SCAN_THREADS, head, list);
            }
#pragma unroll
            for (int n = 0; n < AT_ONCE / 2; n++) {
                batch.x[n] = batch.x[n + AT_ONCE / 2];
            }
        }
        mass += kept;
    }
    mass = lists ? block_sum(mass) : 0.0;
    double score;
    int token = block_drawn(own, score);
    if (threadIdx.x == 0) {
        part.score = score;
        part.drawn = token;
        part.mass = mass;
    }
}

// Filters the listed tokens and draws among them.
__device__ __forceinline__ int draw_listed(const Scaled& scaled, const Lane& lane, const Head& head, const int* list,
                                           double& score) {
    __shared__ float xs[LISTED_STAGED];
    const Sampling& s = lane.sampling;
    int count = __ldcg(&head.listed);
    bool staged = count <= LISTED_STAGED;
    for (int n = threadIdx.x; staged && n < count; n += SCAN_THREADS) {
        xs[n] = scaled.at(__ldcg(list + n));
    }
    __syncthreads();
    Listed listed = {&scaled, list, staged ? xs : nullptr, count, head.first / -BINS_OF_ONE};
    float bound = -INFINITY;
    if (s.top_k > 0) {
        bound = bound_of(listed, false, s.top_k - head.before, bound);
    }
    if (s.top_p < 1.0f) {
        // In units of the listed tokens' masses.
        double unit = exp(-(double)listed.largest) * MASS_ONE, before = mass_of(head) * unit, own = 0.0;
        for (int n = threadIdx.x; s.top_k > 0 && n < count; n += SCAN_THREADS) {
            float x = listed.at(n);
            own += bound <= x ? listed.mass(x) : 0u; // exact: in any order the same
        }
        double all = s.top_k > 0 ? before + block_sum(own) : head.mass * unit;
        double goal = ceil(s.top_p * all - before);
        bound = fmaxf(bound, bound_of(listed, true, goal > 1.0 ? (Ranked)goal : 1, bound));
    }
    bound = fmaxf(bound, min_p_bound(s));
    Drawn own;
    for (int n = threadIdx.x; n < count; n += SCAN_THREADS) {
        float x = listed.at(n);
        if (bound <= x) {
            int token = __ldcg(list + n);
            own.consider(x, token, word_of(words_of(lane, token / 4), token));
        }
    }
    return block_drawn(own, score);
}

// Grid (16 parts, rows), 512 threads: log-probabilities, most likely tokens, and the token where it is forced or the
// most likely one. Bytes: the logits once, 0.5 MB a lane of 128K tokens; 33 MB, 11 us, at 64 lanes; one lane takes as
// long as reads in a row and two joins do, about 6 us. Shared memory: 6 KiB.
extern "C" __global__ void __launch_bounds__(SCAN_THREADS, 3)
    sample_scan(const __grid_constant__ Runtime rt, const __grid_constant__ View logits,
                const __grid_constant__ Target target) {
    let_successor_start();
    wait_for_predecessor();
    Row row;
    if (!row_of(rt, logits, target, row)) {
        return;
    }
    const Lane& lane = rt.lanes[row.id];
    Head& head = head_of(rt, blockIdx.y);
    int forced = lane.forced, top_count = lane.sampling.top_count;
    bool out = suppresses(rt, row.id), draws = forced < 0 && lane.sampling.temperature > 0.0f;
    Source source = source_of(rt, row, out);
    const unsigned* mask = mask_of(rt, row.id);
    Tokens tokens(rt.vocab, blockIdx.x);
    Part& part = head.parts[blockIdx.x];
    if (source.is_plain() && !mask) {
        scan<false>(Source::plain(row.logits), nullptr, tokens, top_count, 0, part);
    } else {
        scan<false>(source, mask, tokens, top_count, 0, part);
    }
    if (!is_last(head)) {
        return;
    }
    float log_sum = log_sum_of(head);
    if (top_count > 0) {
        join_top(head, top_count, log_sum, row.record->top_tokens, row.record->top_logprobs);
    }
    int of = threadIdx.x % 32;
    Ranked best = warp_best(of < PARTS ? __ldcg(&head.parts[of].best) : 0);
    if (draws) {
        prepare_draw(lane.sampling, logit_of(best), head);
    }
    if (threadIdx.x == 0) {
        head.draws = draws;
        head.counts = draws && head.counts;
        head.suppresses = out;
        head.log_sum = log_sum;
        head.best = token_of(best);
        if (!draws) {
            finish(rt, row, source, log_sum, forced < 0 ? token_of(best) : forced);
        }
    }
}

// The same grid, after sample_scan: for lanes that draw by top-p, or by a top-k beyond 256, the bins in which these may
// cut. Bytes: the logits again; 12 us a lane of 128K tokens, by atomics and joins. Shared memory: 33 KiB.
extern "C" __global__ void __launch_bounds__(SCAN_THREADS, 3)
    sample_bins(const __grid_constant__ Runtime rt, const __grid_constant__ View logits,
                const __grid_constant__ Target target) {
    __shared__ int bins[SCALED_BINS];
    let_successor_start();
    wait_for_predecessor();
    Row row;
    Head& head = head_of(rt, blockIdx.y);
    if (!row_of(rt, logits, target, row) || !head.counts) {
        return;
    }
    Scaled scaled = {source_of(rt, row, head.suppresses), mask_of(rt, row.id), head.largest, head.scale};
    count_part(scaled, Tokens(rt.vocab, blockIdx.x), bins, head, head.parts[blockIdx.x]);
    if (!is_last(head)) {
        return;
    }
    for (int n = threadIdx.x; n < SCALED_BINS; n += SCAN_THREADS) {
        bins[n] = __ldcg(&head.bins[n]);
        head.bins[n] = 0;
    }
    __syncthreads();
    cut_bins(rt.lanes[row.id].sampling, bins, mass_of(head), head);
}

// The same grid, at the end: draws where the scan left it to this one. Bytes: the logits again; a noise word and 60
// instructions a token: 3 us a lane of 128K tokens, 30 us at 64 lanes (10 and 53 us measured on an H200: reading the
// code shows). With top-k or top-p the last block decides on the tokens that may be cut, mostly a few hundred: seven
// passes over shared memory, 20 us. Shared memory: 45 KiB.
extern "C" __global__ void __launch_bounds__(SCAN_THREADS, 2)
    sample_draw(const __grid_constant__ Runtime rt, const __grid_constant__ View logits,
                const __grid_constant__ Target target) {
    let_successor_start();
    wait_for_predecessor();
    Row row;
    if (!row_of(rt, logits, target, row)) {
        return;
    }
    Head& head = head_of(rt, blockIdx.y);
    if (!head.draws) {
        return;
    }
    const Lane& lane = rt.lanes[row.id];
    Scaled scaled = {source_of(rt, row, head.suppresses), mask_of(rt, row.id), head.largest, head.scale};
    Tokens tokens(rt.vocab, blockIdx.x);
    int* list = list_of(rt, blockIdx.y);
    draw_part(scaled, lane, tokens, head, list, head.parts[blockIdx.x]);
    if (!is_last(head)) {
        return;
    }
    double score = -INFINITY;
    int token = -1;
    if (head.first <= head.last) {
        token = draw_listed(scaled, lane, head, list, score);
    }
    take_best(score, token, head);
    if (threadIdx.x == 0) {
        head.listed = 0;
        // Logits that are no numbers have no largest sum: any token of the vocabulary is as good.
        finish(rt, row, scaled.source, head.log_sum, token < 0 ? head.best : token);
    }
}

// What a lane starts with, in device memory; null for what it has not. Mirrored in src/lanes.rs.
struct Start {
    const Lane* lane;
    const unsigned* kv_rows;
    const unsigned* summary_rows;
    const unsigned* mask;
    const int* prompt;
    const int2* biases;   // token, bits of the bias
    const int* suppressed;
    int id, kv_count, summary_count, prompt_count, bias_count, suppressed_count;
    int given; // the completion's first token; -1 for none
};

template <typename T>
__device__ __forceinline__ void copy(T* to, const T* from, int count) {
    for (int n = blockIdx.x * blockDim.x + threadIdx.x; n < count; n += gridDim.x * blockDim.x) {
        to[n] = from ? from[n] : 0;
    }
}

// Any grid: the lane, its tables and its mask; clears what mark_lane marks. Bytes: 1 MB where penalties and biases are
// asked for: some microseconds a request.
extern "C" __global__ void start_lane(const __grid_constant__ Runtime rt, const __grid_constant__ Start start) {
    size_t first = (size_t)start.id * rt.vocab, first_word = (size_t)start.id * rt.mask_words;
    size_t first_page = (size_t)start.id * rt.max_pages;
    copy((int*)(rt.lanes + start.id), (const int*)start.lane, sizeof(Lane) / 4);
    copy(rt.kv_rows + first_page, start.kv_rows, start.kv_count);
    copy(rt.summary_rows + first_page, start.summary_rows, start.summary_count);
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        rt.residency.caches[start.id] = {0, 0, 0, 0};
    }
    if (start.lane->masked) {
        copy(rt.mask + first_word, start.mask, rt.mask_words);
    }
    if (start.lane->sampling.penalised) {
        copy(rt.counts + first, (const int*)nullptr, rt.vocab);
    }
    if (start.lane->sampling.biased) {
        copy((int*)rt.bias + first, (const int*)nullptr, rt.vocab);
    }
    if (start.lane->sampling.suppresses) {
        copy(rt.suppressed + first_word, (const unsigned*)nullptr, rt.mask_words);
    }
}

// Any grid, after start_lane: tokens of the prompt and the completion's first, biases, suppressed tokens.
extern "C" __global__ void mark_lane(const __grid_constant__ Runtime rt, const __grid_constant__ Start start) {
    size_t first = (size_t)start.id * rt.vocab;
    int number = blockIdx.x * blockDim.x + threadIdx.x, step = gridDim.x * blockDim.x;
    for (int n = number; n < start.prompt_count; n += step) {
        atomicOr(rt.counts + first + start.prompt[n], IN_PROMPT);
    }
    for (int n = number; n < start.bias_count; n += step) {
        rt.bias[first + start.biases[n].x] = __int_as_float(start.biases[n].y);
    }
    for (int n = number; n < start.suppressed_count; n += step) {
        int token = start.suppressed[n];
        atomicOr(rt.suppressed + (size_t)start.id * rt.mask_words + token / 32, 1u << (token % 32));
    }
    if (number == 0 && 0 <= start.given) {
        atomicAdd(rt.counts + first + start.given, 1);
    }
}
