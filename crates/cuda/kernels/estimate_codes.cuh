// Estimate from value codes and the token logits that `score_codes` left.
#pragma once

#include "estimate.cuh"

constexpr int ROUND_GROUPS = 512; // groups whose pages' bits are in shared memory at once
constexpr int ROUND_PAGES = ROUND_GROUPS * GROUP_PAGES;

// c [16][8] += a [16][16] b [16][8], f16 in, f32 sums.
__device__ __forceinline__ void multiply_f16(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                                             unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Groups of a round that matter to one warp: of 32 (every WARPS-th from `base` on, one a thread) those still to be
// taken.
struct Groups {
    int base;
    unsigned row, included; // of this thread's group: its frame's; six bits, one a page
    unsigned left;
};

// Groups of a step of a warp: `FRAMES` at once, so that all eight columns of a matrix instruction are somebody's:
// column c belongs to query head c % SLOTS and frame c / SLOTS. A step may have fewer; its first group then stands for
// the rest.
template <int SLOTS>
struct Step {
    static constexpr int FRAMES = 8 / SLOTS;
    unsigned rows[FRAMES];
    int group;         // of this thread's column, and its frame's row
    unsigned own_row;
    unsigned included; // pages of that, six bits; 0 where the column is nobody's

    // There is one to take.
    __device__ __forceinline__ void take(Groups& groups, int heads) {
        int column = threadIdx.x % 32 / 4, which = column / SLOTS, mine = 0;
        bool real = false;
#pragma unroll
        for (int n = 0; n < FRAMES; n++) {
            int place = groups.left ? __ffs(groups.left) - 1 : mine;
            if (n == 0 || which == n) {
                mine = place;
                real = groups.left;
            }
            rows[n] = __shfl_sync(FULL, groups.row, place);
            own_row = n == 0 || which == n ? rows[n] : own_row;
            groups.left &= groups.left - 1;
        }
        group = groups.base + WARPS * mine;
        included = __shfl_sync(FULL, groups.included, mine);
        included = real && column % SLOTS < heads ? included : 0;
    }
};

// What a step reads. Thread t weighs for column t / 4 the tokens of page t % 4 and half of page 4 + t % 4 / 2: twelve,
// which for matrix instructions are depths 2 (t % 4) + {0, 1, 8, 9} of three steps of 16. Of codes it reads one word of
// each of these tokens; of d 64, words have two threads each: see `add_codes`; of d 96, two threads in eight read a
// word that nobody uses.
template <int D, int SLOTS>
struct Data {
    static constexpr int FRAMES = 8 / SLOTS;
    static constexpr int ROW = D / 4; // bytes of a token's codes
    unsigned logits[6];               // f16 pairs
    uint4 statistics[3];              // bf16 (mean, deviation) of tokens
    unsigned codes[FRAMES][12];

    __device__ __forceinline__ static int token(int n) {
        int quad = threadIdx.x % 4;
        return n < 8 ? 8 * quad + n : 32 + 4 * quad + n - 8;
    }

    // `token_logits` are those of this thread's column.
    __device__ __forceinline__ void read_tokens(const Step<SLOTS>& step, const __half* token_logits,
                                                const Frames<D>& pool) {
        const __half* source = token_logits + (size_t)step.group * SKETCH_TOKENS;
        uint4 first = __ldg((const uint4*)(source + token(0)));
        uint2 second = __ldg((const uint2*)(source + token(8)));
        logits[0] = first.x, logits[1] = first.y, logits[2] = first.z, logits[3] = first.w;
        logits[4] = second.x, logits[5] = second.y;
        const char* own = plain(pool.at(step.own_row) + 4 * token(0)) + 28 * D;
        statistics[0] = __ldg((const uint4*)own);
        statistics[1] = __ldg((const uint4*)(own + 16));
        statistics[2] = __ldg((const uint4*)(own + 4 * (token(8) - token(0))));
    }

    __device__ __forceinline__ void read_codes(const Step<SLOTS>& step, const Frames<D>& pool, int n) {
        int word = threadIdx.x % 32 / 4;
        word = D == 64 ? word % 4 : min(word, D / 16 - 1);
        const char* source = pool.at(step.rows[n]) + 16 * D + 4 * word;
        const char *whole = plain(source + token(0) * ROW), *half = plain(source + token(8) * ROW);
#pragma unroll
        for (int k = 0; k < 12; k++) {
            codes[n][k] = __ldg((const unsigned*)(k < 8 ? whole + k * ROW : half + (k - 8) * ROW));
        }
    }

    // Asks for what the next step will read of its frames.
    __device__ __forceinline__ static void prefetch_frames(Groups groups, const Frames<D>& pool) {
        constexpr int LINES = (12 * D + 192 + 127) / 128;
        if (groups.left) {
            Step<SLOTS> step;
            step.take(groups, 0);
            int thread = threadIdx.x % 32;
            unsigned first = step.rows[0], last = step.rows[FRAMES - 1];
            const char* frame = pool.at(thread < LINES ? first : last) + 16 * D;
            if (thread < FRAMES * LINES) {
                prefetch(frame + thread % LINES * 128);
            }
        }
    }
};

// What a warp adds up. Columns are those of `Step`; a matrix instruction gives a thread columns 2 (t % 4) + {0, 1}.
template <int D>
struct Sums {
    static constexpr int HALVES = D == 64 ? 1 : 2; // pairs of a word's bytes that a thread adds up
    float codes[HALVES][4][4];                     // sums of a code, see `add_codes`
    float a[4];                                    // sum of a, in every row
    float p, p_mean;                               // of this thread's own column and tokens
};

// Weights of a step's tokens, for this thread's column: f16 pairs a = p dev. `most` is M log2(e).
template <int D, int SLOTS>
__device__ __forceinline__ void weigh(const Data<D, SLOTS>& data, unsigned included, float most, Sums<D>& sums,
                                      unsigned (&a)[6]) {
    int quad = threadIdx.x % 4;
    bool first = included >> quad & 1, second = included >> (4 + quad / 2) & 1;
    const unsigned* statistics = (const unsigned*)data.statistics;
#pragma unroll
    for (int n = 0; n < 6; n++) {
        bool in = n < 4 ? first : second;
        float2 x = __half22float2(*(const __half2*)&data.logits[n]);
        float p0 = in ? exp2_fast(fmaf(x.x, LOG2_E, -most)) : 0.0f;
        float p1 = in ? exp2_fast(fmaf(x.y, LOG2_E, -most)) : 0.0f;
        unsigned s0 = statistics[2 * n], s1 = statistics[2 * n + 1];
        sums.p += p0 + p1;
        sums.p_mean = fmaf(p0, low_bf16(s0), fmaf(p1, low_bf16(s1), sums.p_mean));
        __half2 pair = __floats2half2_rn(p0 * high_bf16(s0), p1 * high_bf16(s1));
        pair = __hmin2(pair, __float2half2_rn(65504.0f));
        a[n] = *(unsigned*)&pair;
    }
}

// Adds a frame's codes times weights. Codes stay where they lie in a word: as f16 they are subnormals, 2^-24 times 1,
// 4, 16, 64 or 256 times the code. Tokens' words are joined in pairs of 16 bits: bytes 2 h and 2 h + 1 of two tokens.
// sums.codes[h][2 j + k] has as rows, for word t / 4, byte 2 h + j, quarters 2 k and 2 k + 1.
template <int D>
__device__ __forceinline__ void add_codes(const unsigned (&words)[12], const unsigned (&a)[6], Sums<D>& sums) {
    constexpr unsigned ONES = 0x3c003c00;
    int bytes = threadIdx.x % 32 / 16 ? 0x7632 : 0x5410; // of d 64: threads from 16 on have the upper half
#pragma unroll
    for (int k = 0; k < 3; k++) {
        unsigned b0 = a[2 * k], b1 = a[2 * k + 1];
        multiply_f16(sums.a, ONES, ONES, ONES, ONES, b0, b1);
#pragma unroll
        for (int h = 0; h < Sums<D>::HALVES; h++) {
            int select = D == 64 ? bytes : h ? 0x7632 : 0x5410;
            unsigned x = __byte_perm(words[4 * k], words[4 * k + 1], select);
            unsigned y = __byte_perm(words[4 * k + 2], words[4 * k + 3], select);
            unsigned x8 = x >> 8, y8 = y >> 8;
            auto& c = sums.codes[h];
            multiply_f16(c[0], x & 0x00030003, x & 0x000c000c, y & 0x00030003, y & 0x000c000c, b0, b1);
            multiply_f16(c[1], x & 0x00300030, x & 0x00c000c0, y & 0x00300030, y & 0x00c000c0, b0, b1);
            multiply_f16(c[2], x & 0x03000300, x8 & 0x000c000c, y & 0x03000300, y8 & 0x000c000c, b0, b1);
            multiply_f16(c[3], x8 & 0x00300030, x8 & 0x00c000c0, y8 & 0x00300030, y8 & 0x00c000c0, b0, b1);
        }
    }
}

// What a code's place makes of it in rows `lower`, 0 or 1, of a matrix: 2^24 over its scale.
__device__ __forceinline__ float code_unit(int matrix, int lower) {
    float scale = matrix == 0 ? (lower ? 4.0f : 1.0f) : matrix == 2 ? (lower ? 4.0f : 256.0f) : (lower ? 64.0f : 16.0f);
    return 16777216.0f / scale;
}

// Joins the warps' sums to results in the rotated basis.
template <int D, int SLOTS>
__device__ __forceinline__ void join_codes(const Sums<D>& sums, typename Task<D, SLOTS>::Shared& shared) {
    constexpr int FRAMES = 8 / SLOTS;
    int thread = threadIdx.x % 32, warp = threadIdx.x / 32, quad = thread % 4, word = thread / 4, byte = 0;
    if (D == 64) {
        byte = word / 4 * 2;
        word %= 4;
    }
#pragma unroll
    for (int h = 0; h < Sums<D>::HALVES; h++) {
#pragma unroll
        for (int n = 0; n < 16; n++) {
            int matrix = n / 4, lower = n / 2 % 2, quarter = matrix % 2 * 2 + lower;
            int channel = quarter * (D / 4) + 4 * word + byte + 2 * h + matrix / 2;
            if (word < D / 16) {
                shared.sums[(warp * 8 + 2 * quad + n % 2) * D + channel] =
                    sums.codes[h][matrix][n % 4] * code_unit(matrix, lower);
            }
        }
    }
    float p = sums.p + __shfl_xor_sync(FULL, sums.p, 1), mean = sums.p_mean + __shfl_xor_sync(FULL, sums.p_mean, 1);
    p += __shfl_xor_sync(FULL, p, 2), mean += __shfl_xor_sync(FULL, mean, 2);
    if (quad == 0) {
        shared.totals[0][warp][thread / 4] = p;
        shared.totals[1][warp][thread / 4] = mean;
    }
    if (thread < 4) {
        shared.totals[2][warp][2 * quad] = sums.a[0];
        shared.totals[2][warp][2 * quad + 1] = sums.a[1];
    }
    __syncthreads();
#pragma unroll
    for (int h = 0; h < SLOTS; h++) {
        float total[3] = {}, sum = 0;
#pragma unroll
        for (int n = 0; n < WARPS * FRAMES; n++) {
            int warp = n / FRAMES, column = n % FRAMES * SLOTS + h;
#pragma unroll
            for (int k = 0; k < 3; k++) {
                total[k] += shared.totals[k][warp][column];
            }
            sum += (int)threadIdx.x < D ? shared.sums[(warp * 8 + column) * D + threadIdx.x] : 0.0f;
        }
        bool some = total[0] > 0;
        if ((int)threadIdx.x < D) {
            float y = fmaf(CODE_THRESHOLD, fmaf(-1.5f, total[2], sum), total[1]);
            shared.result[h][threadIdx.x] = some ? y / total[0] : 0.0f;
        }
        if (threadIdx.x == 0) {
            shared.lse[h] = some ? shared.most[h] + logf(total[0]) : -INFINITY;
        }
    }
    __syncthreads();
}

// Marks the round's pages: those included, and those of them that some head does not neglect.
template <int D, int SLOTS>
__device__ __forceinline__ void mark_pages(const Runtime& rt, const Task<D, SLOTS>& task, int first, int end,
                                           const float* most, unsigned* included, unsigned* needed) {
    constexpr int BATCH = Task<D, SLOTS>::BATCH;
    for (int base = first + threadIdx.x; base < first + (end - first + 31) / 32 * 32; base += BATCH * THREADS) {
        float x[BATCH][SLOTS];
        unsigned in;
        task.read_scores(rt, base, x, in);
#pragma unroll
        for (int n = 0; n < BATCH; n++) {
            bool matters = false;
#pragma unroll
            for (int h = 0; h < SLOTS; h++) {
                matters |= x[n][h] > most[h] - NEGLIGIBLE;
            }
            int page = base + n * THREADS;
            unsigned bits = __ballot_sync(FULL, page < end && in >> n & 1);
            unsigned needs = __ballot_sync(FULL, page < end && in >> n & matters);
            if (threadIdx.x % 32 == 0 && page < end) {
                included[(page - first) / 32] = bits;
                needed[(page - first) / 32] = needs;
            }
        }
    }
}

// Adds the groups of up to 32.
template <int D, int SLOTS>
__device__ __forceinline__ void add_groups(const Frames<D>& pool, Groups groups, const __half* token_logits, int heads,
                                           float most, Sums<D>& sums) {
    constexpr int FRAMES = 8 / SLOTS;
    int which = threadIdx.x % 32 / 4 / SLOTS;
    Step<SLOTS> step;
    Data<D, SLOTS> data;
    step.take(groups, heads);
    data.read_tokens(step, token_logits, pool);
#pragma unroll
    for (int n = 0; n < FRAMES; n++) {
        data.read_codes(step, pool, n);
    }
    data.prefetch_frames(groups, pool);
    while (true) {
        unsigned a[6];
        weigh<D, SLOTS>(data, step.included, most, sums, a);
        bool more = groups.left;
        if (more) {
            step.take(groups, heads);
            data.read_tokens(step, token_logits, pool);
            data.prefetch_frames(groups, pool);
        }
#pragma unroll
        for (int n = 0; n < FRAMES; n++) {
            unsigned own[6];
#pragma unroll
            for (int k = 0; k < 6; k++) {
                own[k] = FRAMES == 1 || which == n ? a[k] : 0;
            }
            add_codes<D>(data.codes[n], own, sums);
            if (more) {
                data.read_codes(step, pool, n);
            }
        }
        if (!more) {
            return;
        }
    }
}

// Six bits, one a page, of a group.
__device__ __forceinline__ unsigned six_bits(const unsigned* words, int group) {
    int at = group * GROUP_PAGES;
    return __funnelshift_r(words[at / 32], words[at / 32 + 1], at % 32) & 63;
}

template <int D, int SLOTS>
__device__ __forceinline__ void add_item(const Runtime& rt, int layer, const Task<D, SLOTS>& task, const float* most,
                                         Sums<D>& sums) {
    __shared__ unsigned included[ROUND_PAGES / 32 + 1], needed[ROUND_PAGES / 32 + 1];
    Frames<D> pool(rt, layer, task.head);
    int thread = threadIdx.x % 32, slot = thread / 4 % SLOTS;
    size_t row = (size_t)task.i * rt.q_heads + task.head * rt.group + min(slot, rt.group - 1);
    const __half* token_logits = rt.token_logits + row * rt.max_tokens;
    const unsigned* table = rt.summary_rows + (size_t)task.lane * rt.max_pages;
    for (int first = task.first; first < task.end; first += ROUND_PAGES) {
        int end = min(first + ROUND_PAGES, task.end), count = (end - first) / GROUP_PAGES;
        __syncthreads();
        mark_pages<D, SLOTS>(rt, task, first, end, most, included, needed);
        __syncthreads();
        for (int base = threadIdx.x / 32; base < count; base += 32 * WARPS) {
            int own = base + WARPS * thread;
            bool inside = own < count;
            Groups groups;
            groups.base = first / GROUP_PAGES + base;
            groups.row = inside ? __ldg(table + first / GROUP_PAGES + own) : 0;
            groups.included = inside ? six_bits(included, own) : 0;
            groups.left = __ballot_sync(FULL, inside && six_bits(needed, own));
            if (groups.left) {
                add_groups<D, SLOTS>(pool, groups, token_logits, rt.group, most[slot] * LOG2_E, sums);
            }
        }
    }
}

template <int D, int SLOTS>
__device__ __forceinline__ void estimate_codes(const Runtime& rt, int algorithm, int layer, bool beside,
                                               const float* rotation, const Partial& out) {
    __shared__ typename Task<D, SLOTS>::Shared shared;
    let_successor_start();
    if (!beside) {
        wait_for_predecessor();
    }
    run_items<D, SLOTS>(rt, algorithm, rotation, out, shared, [&](const Task<D, SLOTS>& task) {
        Sums<D> sums = {};
        add_item<D, SLOTS>(rt, layer, task, shared.most, sums);
        join_codes<D, SLOTS>(sums, shared);
    });
}
