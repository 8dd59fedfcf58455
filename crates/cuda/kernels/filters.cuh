// What filters a draw: top-k, top-p and min-p, each a lower bound of scaled logits.
#pragma once

#include "block.cuh"
#include "logits.cuh"

constexpr float TEMPERATURE_LEAST = 1e-3f;
constexpr int MASS_BITS = 14;         // of each half of a mass: whole numbers, whose sums have no order
constexpr float MASS_ONE = 1 << 2 * MASS_BITS;
constexpr float BINS_OF_ONE = 512.0f; // bins in which scaled logits fall by 1: masses in one differ by 0.2 %
constexpr int OWN_BINS = SCALED_BINS / SCAN_THREADS;

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

// Weights by bins, in halves: shared memory adds up words of 32 bits alone.
struct Histogram {
    unsigned low[BINS], high[BINS];

    __device__ __forceinline__ Ranked operator[](int bin) const { return ((Ranked)high[bin] << MASS_BITS) + low[bin]; }
};

// Listed tokens by their scaled logits: how many, and what they weigh against `largest`, which none exceeds.
struct Listed {
    const Scaled* scaled;
    const int* list;
    const float* staged; // their scaled logits, or null
    int count;
    float largest;

    __device__ __forceinline__ float at(int n) const { return staged ? staged[n] : scaled->at(__ldcg(list + n)); }

    // Below 2^28: the sums of 2^18 halves have 32 bits.
    __device__ __forceinline__ unsigned mass(float x) const {
        return min(__float2uint_rn(expf(x - largest) * MASS_ONE), (1u << 2 * MASS_BITS) - 1);
    }
};

// The smallest scaled logit of the fewest largest ones whose weights (1 each, or their masses) reach `goal`; minus
// infinity where all do not. Those below `least` count for nothing. Three passes, over 11, 10 and 10 bits of a key that
// ascends as the scaled logit, at most 0, descends.
__device__ __noinline__ float bound_of(const Listed& listed, bool masses, Ranked goal, float least) {
    __shared__ Ranked sums[SCAN_WARPS];
    __shared__ Histogram histogram;
    __shared__ Crossing<Ranked> found;
    unsigned low = 0, span = 1u << 31;
    for (int shift = 20; 0 <= shift; shift -= 10) {
        for (int n = threadIdx.x; n < BINS; n += SCAN_THREADS) {
            histogram.low[n] = histogram.high[n] = 0;
        }
        __syncthreads();
        for (int n = threadIdx.x; n < listed.count; n += SCAN_THREADS) {
            float x = listed.at(n);
            unsigned key = __float_as_uint(fabsf(x));
            if (least <= x && low <= key && key - low < span) {
                unsigned weight = masses ? listed.mass(x) : 1;
                atomicAdd(&histogram.low[(key - low) >> shift], weight & ((1 << MASS_BITS) - 1));
                if (weight >> MASS_BITS) {
                    atomicAdd(&histogram.high[(key - low) >> shift], weight >> MASS_BITS);
                }
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
