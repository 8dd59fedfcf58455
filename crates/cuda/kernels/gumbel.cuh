// Draws: the largest sum of a scaled logit and Gumbel noise. Noise is a function of (seed, choice, position, token).
#pragma once

#include "logits.cuh"

constexpr float NEAR = 1e-4f; // twice what noise in f32 is off by, with room to spare

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
__device__ __noinline__ double noise(unsigned word) { return -log(-log(((double)word + 0.5) / 4294967296.0)); }

// The same within 1e-5: near u = 1 by the series of ln(1 - v).
__device__ __forceinline__ float noise_near(unsigned word) {
    constexpr float UNIT = 1.0f / 4294967296.0f, LN_2 = 0.69314718f;
    float v = ((float)~word + 0.5f) * UNIT;
    float small = v * (1.0f + v * (0.5f + v * (1.0f / 3.0f + v * 0.25f)));
    float other = -LN_2 * __log2f(((float)word + 0.5f) * UNIT);
    return -LN_2 * __log2f(v < 0.0625f ? small : other);
}

// A thread's token with the largest sum of scaled logit and noise; none at first. Sums in f32 tell which it is, but
// where two are near each other: those are computed in double.
struct Drawn {
    float near = -INFINITY, x = -INFINITY;
    unsigned word = 0;
    int token = -1;

    __device__ __forceinline__ double score() const { return (double)x + noise(word); }

    __device__ __forceinline__ void consider(float other_x, int other_token, unsigned other_word) {
        float other_near = other_x + noise_near(other_word);
        bool better = other_near > near + NEAR;
        if (!better && near - NEAR <= other_near && other_x > -INFINITY) {
            double a = score(), b = (double)other_x + noise(other_word);
            better = b > a || (b == a && other_token < token);
        }
        if (better) {
            near = other_near;
            x = other_x;
            word = other_word;
            token = other_token;
        }
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

// Words of the warp's tokens first + n * SCAN_THREADS, n < 4 (`first` of this thread): each call of the generator
// serves four neighbours, so each of them makes one, and they exchange.
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
