// Choosing tokens: backend/src/cpu/sample.rs is the truth. One kernel scans the logits and chooses where nothing is
// drawn, a second one draws. Also how a lane starts.
#include "block.cuh"
#include "logits.cuh"

constexpr float TEMPERATURE_LEAST = 1e-3f;
constexpr double MASS_ONE = 1099511627776.0; // 2^40: listed masses are whole numbers, whose sums have no order
constexpr float NEAR = 1e-4f;                // twice what noise in f32 is off by, with room to spare
constexpr int LISTED_STAGED = 7168;          // listed tokens whose logits are kept in shared memory
constexpr float BINS_OF_ONE = 512.0f;        // bins in which logits fall by 1: masses in one differ by 0.2 %
constexpr int OWN_BINS = SCALED_BINS / SCAN_THREADS;

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
    record.lane = row.id;
    record.token = token;
    record.logprob = source.at(token) - log_sum;
    record.exact_tokens = row.is_prefill ? lane.len : exact_tokens(lane.selection, lane.len);
    record.mass = lane.mass_count > 0 ? (float)(lane.mass / lane.mass_count) : -1.0f;
    record.top_count = lane.sampling.top_count;
    lane.forced = -1;
    lane.masked = 0;
    lane.token = token;
    if (lane.prompt_outputs > 0) {
        lane.prompt_outputs -= 1;
        return;
    }
    lane.generated += 1;
    if (lane.sampling.penalised) {
        rt.counts[(size_t)row.id * rt.vocab + token] += 1;
    }
}

// ---- filters

__device__ __forceinline__ float min_p_bound(const Sampling& s) {
    return s.min_p > 0.0f ? (float)log((double)s.min_p) : -INFINITY;
}

// Logits as a draw sees them: scaled, minus infinity outside the mask.
struct Scaled {
    Source source;
    const unsigned* mask;
    float largest, scale;

    __device__ __forceinline__ float at(int token) const { return (source.at(token) - largest) * scale; }

    __device__ __forceinline__ Batch batch(int first, int step, int end) const {
        Batch out = source.batch(first, step, end);
        if (mask) {
            Source::exclude(mask, false, first, step, end, out);
        }
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++) {
            out.x[n] = (out.x[n] - largest) * scale;
        }
        return out;
    }
};

__device__ __forceinline__ int bin_of(float x) { return (int)fminf(x * -BINS_OF_ONE, SCALED_BINS - 1.0f); }

// Sum over the block, in one order. Every thread calls it.
__device__ __forceinline__ double block_sum(double x) {
    __shared__ double sums[SCAN_WARPS];
    double total;
    sum_before<SCAN_THREADS>(x, sums, total);
    return total;
}

// Sum of the parts' masses, in one order.
__device__ __forceinline__ double mass_of(const Head& head) {
    int part = threadIdx.x % 32;
    double mass = part < PARTS ? __ldcg(&head.parts[part].mass) : 0.0;
    for (int at = 16; at > 0; at /= 2) {
        mass += __shfl_xor_sync(FULL, mass, at);
    }
    return mass;
}

// The k-th largest of the warps' largest logits: at least k allowed tokens reach it, and hardly more do. Every thread
// calls it.
__device__ __forceinline__ float reached_by(const Head& head, int k) {
    constexpr int COUNT = PARTS * SCAN_WARPS;
    __shared__ float4 all[COUNT / 4];
    __shared__ float bound;
    static_assert(COUNT <= SCAN_THREADS, "a thread for each");
    float own = -INFINITY;
    if (threadIdx.x < COUNT) {
        own = __ldcg(&head.parts[threadIdx.x / SCAN_WARPS].of_warps[threadIdx.x % SCAN_WARPS]);
        ((float*)all)[threadIdx.x] = own;
    }
    __syncthreads();
    if (threadIdx.x < COUNT) {
        int larger = 0, equal = 0;
#pragma unroll 8
        for (int n = 0; n < COUNT / 4; n++) {
            float4 x = all[n];
            larger += (x.x > own) + (x.y > own) + (x.z > own) + (x.w > own);
            equal += (x.x == own) + (x.y == own) + (x.z == own) + (x.w == own);
        }
        if (larger < k && k <= larger + equal) {
            bound = own;
        }
    }
    __syncthreads();
    return bound;
}

// Sums over bins before one, from `before` at a thread's first bin on.
struct BinSums {
    int count;
    double at_least, at_most; // of e^(scaled logit): a bin's lie between those of its edges; the last has no lower edge

    __device__ __forceinline__ void add(int bin, int tokens) {
        count += tokens;
        at_least += bin == SCALED_BINS - 1 ? 0.0 : tokens * (double)expf((bin + 1) / -BINS_OF_ONE);
        at_most += tokens * (double)expf(bin / -BINS_OF_ONE);
    }
};

// The bins in which top-k and top-p may cut: `first` to `last`, and the tokens before them.
__device__ __forceinline__ void cut_bins(const Sampling& s, const int* bins, double mass, Head& head) {
    __shared__ int counts[SCAN_WARPS], first, last, before;
    __shared__ double masses[SCAN_WARPS], kept;
    constexpr double LESS = 1.0 - 1e-5, MORE = 1.0 + 1e-5; // what sums in f32 may be off by
    int own = threadIdx.x * OWN_BINS;
    BinSums start = {0, 0.0, 0.0}, all;
    for (int bin = own; bin < own + OWN_BINS; bin++) {
        start.add(bin, bins[bin]);
    }
    start.count = sum_before<SCAN_THREADS>(start.count, counts, all.count);
    start.at_least = sum_before<SCAN_THREADS>(start.at_least, masses, all.at_least);
    start.at_most = sum_before<SCAN_THREADS>(start.at_most, masses, all.at_most);
    if (threadIdx.x == 0) {
        first = before = 0;
        last = SCALED_BINS - 1;
        kept = all.at_least;
    }
    __syncthreads();
    if (s.top_k > 0) {
        BinSums sums = start;
        for (int bin = own; bin < own + OWN_BINS; bin++) {
            BinSums here = sums;
            sums.add(bin, bins[bin]);
            if (here.count < s.top_k && s.top_k <= sums.count) {
                last = bin;
                kept = here.at_least;
                first = s.top_p < 1.0f ? 0 : bin;
                before = s.top_p < 1.0f ? 0 : here.count;
            }
        }
        __syncthreads();
    }
    if (s.top_p < 1.0f) {
        double low_goal = s.top_p * LESS * (s.top_k > 0 ? kept : mass), high_goal = s.top_p * MORE * mass;
        BinSums sums = start;
        for (int bin = own; bin < own + OWN_BINS; bin++) {
            BinSums here = sums;
            sums.add(bin, bins[bin]);
            if (here.at_most < low_goal && low_goal <= sums.at_most) {
                first = bin;
                before = here.count;
            }
            if (s.top_k == 0 && here.at_least < high_goal && high_goal <= sums.at_least) {
                last = bin;
            }
        }
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        head.first = first;
        head.last = last;
        head.before = before;
        head.mass = mass;
    }
}

// Counts the part's scaled logits by bins, into the row's.
__device__ __forceinline__ void count_part(const Scaled& scaled, Tokens tokens, int* bins, Head& head, Part& part) {
    for (int n = threadIdx.x; n < SCALED_BINS; n += SCAN_THREADS) {
        bins[n] = 0;
    }
    __syncthreads();
    double own = 0.0;
    for (int first = tokens.first + threadIdx.x; first < tokens.end; first += SCAN_THREADS * AT_ONCE) {
        Batch batch = scaled.batch(first, SCAN_THREADS, tokens.end);
        float mass = 0.0f;
#pragma unroll
        for (int n = 0; n < AT_ONCE; n++) {
            mass += expf(batch.x[n]);
            if (batch.x[n] > -INFINITY) {
                atomicAdd(&bins[bin_of(batch.x[n])], 1);
            }
        }
        own += mass;
    }
    double mass = block_sum(own);
    if (threadIdx.x == 0) {
        part.mass = mass;
    }
    for (int n = threadIdx.x; n < SCALED_BINS; n += SCAN_THREADS) {
        if (bins[n]) {
            atomicAdd(&head.bins[n], bins[n]);
        }
    }
}

// What the next kernels have to know. A top-k of up to 256 needs no bins where enough warps have allowed tokens.
__device__ __forceinline__ void prepare_draw(const Sampling& s, float largest, Head& head) {
    bool filters = s.top_k > 0 || s.top_p < 1.0f;
    float scale = 1.0f / fmaxf(s.temperature, TEMPERATURE_LEAST), least = -INFINITY;
    if (0 < s.top_k && s.top_k <= PARTS * SCAN_WARPS) {
        least = (reached_by(head, s.top_k) - largest) * scale;
    }
    if (threadIdx.x == 0) {
        head.largest = largest;
        head.scale = scale;
        head.least = least;
        head.counts = filters && least == -INFINITY;
        head.first = filters ? 0 : SCALED_BINS;
        head.last = filters ? SCALED_BINS - 1 : -1;
        head.before = 0;
    }
}

// The smallest scaled logit of the fewest largest ones whose weights (1 each, or their masses) reach `goal`; minus
// infinity where all do not. Those below `least` count for nothing. Three passes, over 11, 10 and 10 bits of a key that
// ascends as the scaled logit, at most 0, descends.
template <typename At>
__device__ float bound_of(int count, const At& x_at, bool masses, Ranked goal, float least) {
    __shared__ unsigned long long histogram[BINS], sums[SCAN_WARPS];
    __shared__ Crossing<unsigned long long> found;
    unsigned low = 0, span = 1u << 31;
    for (int shift = 20; 0 <= shift; shift -= 10) {
        for (int n = threadIdx.x; n < BINS; n += SCAN_THREADS) {
            histogram[n] = 0;
        }
        __syncthreads();
        for (int n = threadIdx.x; n < count; n += SCAN_THREADS) {
            float x = x_at(n);
            unsigned key = __float_as_uint(fabsf(x));
            if (least <= x && low <= key && key - low < span) {
                atomicAdd(&histogram[(key - low) >> shift], masses ? __double2ull_rn(expf(x) * MASS_ONE) : 1ull);
            }
        }
        __syncthreads();
        if (!crossing<SCAN_THREADS>(histogram, goal, sums, &found)) {
            return -INFINITY;
        }
        goal -= found.before;
        low += (unsigned)found.bin << shift;
        span = 1u << shift;
    }
    return -__uint_as_float(low);
}

// ---- draws

// Philox4x32-10: four random words.
__device__ __forceinline__ uint4 philox(uint4 counter, uint2 key) {
#pragma unroll
    for (int round = 0; round < 10; round++) {
        unsigned a = __umulhi(0xd2511f53u, counter.x), b = __umulhi(0xcd9e8d57u, counter.z);
        counter = make_uint4(b ^ counter.y ^ key.x, 0xcd9e8d57u * counter.z, a ^ counter.w ^ key.y,
                             0xd2511f53u * counter.x);
        key.x += 0x9e3779b9u;
        key.y += 0xbb67ae85u;
    }
    return counter;
}

// Random words of tokens 4 number..4 number + 4.
__device__ __forceinline__ uint4 words_of(const Lane& lane, int number) {
    const Sampling& s = lane.sampling;
    uint4 counter = make_uint4(s.choice, lane.len, number, 0);
    return philox(counter, make_uint2(s.seed_low, s.seed_high));
}

__device__ __forceinline__ unsigned word_of(uint4 words, int token) {
    unsigned low = token & 1 ? words.y : words.x, high = token & 1 ? words.w : words.z;
    return token & 2 ? high : low;
}

// Gumbel noise -ln(-ln u) of u = (word + 1/2) / 2^32, in double.
__device__ double noise(unsigned word) { return -log(-log(((double)word + 0.5) / 4294967296.0)); }

// The same within 1e-5: near u = 1 by the series of ln(1 - v).
__device__ __forceinline__ float noise_near(unsigned word) {
    constexpr float UNIT = 1.0f / 4294967296.0f, LN_2 = 0.69314718f;
    float v = ((float)~word + 0.5f) * UNIT;
    float small = v * (1.0f + v * (0.5f + v * (1.0f / 3.0f + v * 0.25f)));
    float other = -LN_2 * __log2f(((float)word + 0.5f) * UNIT);
    return -LN_2 * __log2f(v < 0.0625f ? small : other);
}

// A thread's token with the largest sum of scaled logit and noise; none at first. Sums in f32 tell which it is, but where
// two are near each other: those are computed in double.
struct Drawn {
    float near = -INFINITY, x = -INFINITY;
    unsigned word = 0;
    int token = -1;

    __device__ __forceinline__ double score() const { return (double)x + noise(word); }

    __device__ __forceinline__ void consider(float other_x, int other_token, unsigned other_word) {
        Drawn other;
        other.near = other_x + noise_near(other_word);
        other.x = other_x;
        other.word = other_word;
        other.token = other_token;
        if (other.near < near - NEAR || other_x == -INFINITY) {
            return;
        }
        if (other.near <= near + NEAR) {
            double a = score(), b = other.score();
            if (b < a || (b == a && token < other_token)) {
                return;
            }
        }
        *this = other;
    }
};

// The larger score, or the lower token.
__device__ __forceinline__ void take_better(double& score, int& token, double other_score, int other_token) {
    if (other_score > score || (other_score == score && other_token < token)) {
        score = other_score;
        token = other_token;
    }
}

// The best of the parts' and one more.
__device__ __forceinline__ void take_best(double& score, int& token, const Head& head) {
    int part = threadIdx.x % 32;
    double other = part < PARTS ? __ldcg(&head.parts[part].score) : -INFINITY;
    int other_token = part < PARTS ? __ldcg(&head.parts[part].drawn) : -1;
    for (int at = 16; at > 0; at /= 2) {
        double score_there = __shfl_xor_sync(FULL, other, at);
        take_better(other, other_token, score_there, __shfl_xor_sync(FULL, other_token, at));
    }
    take_better(score, token, other, other_token);
}

// The block's best; token -1 where there is none. Thread 0 gets it, every thread calls it.
__device__ __forceinline__ int block_drawn(const Drawn& own, double& score) {
    __shared__ float nears[SCAN_WARPS];
    __shared__ double scores[SCAN_WARPS];
    __shared__ int tokens[SCAN_WARPS];
    int warp = threadIdx.x / 32, thread = threadIdx.x % 32;
    float most = warp_max(own.near);
    if (thread == 0) {
        nears[warp] = most;
    }
    __syncthreads();
    most = warp_max(nears[thread % SCAN_WARPS]);
    score = -INFINITY;
    int token = own.token;
    if (0 <= token && most - NEAR <= own.near) {
        score = own.score();
    }
    for (int at = 16; at > 0; at /= 2) {
        double other = __shfl_xor_sync(FULL, score, at);
        take_better(score, token, other, __shfl_xor_sync(FULL, token, at));
    }
    if (thread == 0) {
        scores[warp] = score;
        tokens[warp] = token;
    }
    __syncthreads();
    for (int w = 0; threadIdx.x == 0 && w < SCAN_WARPS; w++) {
        take_better(score, token, scores[w], tokens[w]);
    }
    return token;
}

// Words of the warp's tokens first + n * SCAN_THREADS, n < 4 (`first` of this thread): each call of the generator serves
// four neighbours, so each of them makes one, and they exchange.
__device__ __forceinline__ void words_of(const Lane& lane, int first, unsigned (&words)[4]) {
    int own = threadIdx.x % 4;
    uint4 made = words_of(lane, (first - own + own * SCAN_THREADS) / 4);
    words[0] = made.x, words[1] = made.y, words[2] = made.z, words[3] = made.w;
#pragma unroll
    for (int bit = 1; bit <= 2; bit *= 2) {
#pragma unroll
        for (int n = 0; n < 4; n++) {
            if ((n & bit) == 0) {
                // Threads without the bit give the word with it, and the other way round.
                unsigned given = own & bit ? words[n] : words[n | bit];
                unsigned got = __shfl_xor_sync(FULL, given, bit);
                words[n] = own & bit ? got : words[n];
                words[n | bit] = own & bit ? words[n | bit] : got;
            }
        }
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

// Draws among the part's tokens that are kept for certain, adds up their masses, and lists those that the filters decide
// on.
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
#pragma unroll
        for (int half = 0; draws && half < AT_ONCE; half += 4) {
            unsigned words[4];
            words_of(lane, first + half * SCAN_THREADS, words);
#pragma unroll
            for (int n = half; n < half + 4; n++) {
                if (bin_of(batch.x[n]) < first_bin) {
                    kept += lists ? expf(batch.x[n]) : 0.0f;
                    if (drawn_least <= batch.x[n]) {
                        own.consider(batch.x[n], first + n * SCAN_THREADS, words[n - half]);
                    }
                }
            }
        }
        mass += kept;
#pragma unroll
        for (int n = 0; lists && n < AT_ONCE; n++) {
            float x = batch.x[n];
            int bin = bin_of(x);
            bool listed = first_bin <= bin && bin <= last_bin && least <= x && x > -INFINITY;
            list_token(listed, first + n * SCAN_THREADS, head, list);
        }
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
    auto x_at = [&](int n) { return staged ? xs[n] : scaled.at(__ldcg(list + n)); };
    float bound = -INFINITY;
    if (s.top_k > 0) {
        bound = bound_of(count, x_at, false, s.top_k - head.before, bound);
    }
    if (s.top_p < 1.0f) {
        double before = mass_of(head), own = 0.0;
        for (int n = threadIdx.x; s.top_k > 0 && n < count; n += SCAN_THREADS) {
            float x = x_at(n);
            own += bound <= x ? expf(x) : 0.0f;
        }
        double all = s.top_k > 0 ? before + block_sum(own) : head.mass;
        double goal = ceil((s.top_p * all - before) * MASS_ONE);
        bound = fmaxf(bound, bound_of(count, x_at, true, goal > 1.0 ? (Ranked)goal : 1, bound));
    }
    bound = fmaxf(bound, min_p_bound(s));
    Drawn own;
    for (int n = threadIdx.x; n < count; n += SCAN_THREADS) {
        float x = x_at(n);
        if (bound <= x) {
            int token = __ldcg(list + n);
            own.consider(x, token, word_of(words_of(lane, token / 4), token));
        }
    }
    return block_drawn(own, score);
}

// ---- kernels

// Grid (16 parts, rows), 512 threads: log-probabilities, most likely tokens, and the token where it is forced or the
// most likely one. Bytes: the logits once, 0.5 MB a lane of 128K tokens; 33 MB, 11 us, at 64 lanes; one lane takes as long
// as reads in a row and two joins do, about 6 us. Shared memory: 6 KiB.
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
    scan<false>(source, mask, tokens, top_count, 0, head.parts[blockIdx.x]);
    if (!is_last(head)) {
        return;
    }
    float log_sum = log_sum_of(head);
    if (top_count > 0) {
        join_top(head, top_count, log_sum, row.record->top_tokens, row.record->top_logprobs);
    }
    int part = threadIdx.x % 32;
    Ranked best = warp_best(part < PARTS ? __ldcg(&head.parts[part].best) : 0);
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

// The same grid, after sample_scan: for lanes that draw by top-p, or a top-k beyond 256, the bins in which they may cut.
// Bytes: the logits again; 8 us a lane of 128K tokens. Shared memory: 33 KiB.
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
// instructions a token: 3 us a lane of 128K tokens, 30 us at 64 lanes. With top-k or top-p the last block decides on the
// tokens that may be cut, mostly a few hundred: seven passes over shared memory, 5 us. Shared memory: 46 KiB.
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
