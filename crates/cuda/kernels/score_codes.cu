// Scores of coded tokens: truth, with the formulas, is backend/src/cpu/score_codes.rs; frames are laid out as
// backend/src/sketch.rs says. Integers are exact, and every logit takes the same roundings as there; then it is rounded
// to f16, held within +-60,000. Page scores are made of the rounded logits: what `estimate` weighs pages by is then
// what it adds up.
#include "score.cuh"

namespace {

constexpr int MAGIC_BITS = 0x4b400000;  // of MAGIC; integers added to the bits are added to the number
constexpr float MAGIC = 12582912.0f;    // 1.5 * 2^23: adding it rounds to an integer, ties to even
constexpr unsigned LOGIT_MOST = 0x7b53; // 60,000 in f16

// c [16][8] += a [16][32] b [32][8]
__device__ __forceinline__ void multiply(int (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The transpose of an 8 x 8 matrix of 16 bits: thread t has row t / 4, columns 2 (t % 4) + {0, 1}.
__device__ __forceinline__ unsigned transpose(unsigned pair) {
    unsigned out;
    asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(out) : "r"(pair));
    return out;
}

__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(FULL, x, 1);
    return x + __shfl_xor_sync(FULL, x, 2);
}

// A warp scores `FRAMES` groups of one (lane, KV head) together, so that all eight columns of a matrix instruction are
// somebody's: column c belongs to query head c % SLOTS and frame c / SLOTS. Thread t has column t / 4 of queries, and
// words (t % 4) * WORDS + 0..WORDS of a token's codes: channels 4 (t % 4) WORDS + 0..PER of every quarter.
template <int D, int SLOTS>
struct Form {
    static constexpr int FRAMES = 8 / SLOTS;
    static constexpr int WORDS = (D + 63) / 64;
    static constexpr int PER = 4 * WORDS;
    static constexpr int ROW = D / 4;           // bytes of a token's codes
    static constexpr int LINES = D / 8;         // of a frame's first half, 128 bytes each
    static constexpr int QUADS = D / 4 / PER;   // threads of four that have channels: d 96 leaves one without
    using Groups = Share<GROUP_PAGES, FRAMES>;
};

// ---- what is read

template <int WORDS>
struct Words {
    unsigned w[WORDS];
    __device__ __forceinline__ void read(const char* source) {
        if constexpr (WORDS == 2) {
            uint2 x = __ldg((const uint2*)source);
            w[0] = x.x, w[1] = x.y;
        } else {
            w[0] = __ldg((const unsigned*)source);
        }
    }
};

// Means and deviations of this thread's channels in its column's frame, bf16 pairs.
template <int D, int SLOTS>
struct Statistics {
    using F = Form<D, SLOTS>;
    Words<2> means[4][F::WORDS], deviations[4][F::WORDS];

    __device__ __forceinline__ void read(const char* frame, int quad) {
        const char* own = plain(frame + 2 * F::PER * quad);
#pragma unroll
        for (int k = 0; k < 4; k++) {
            const char* source = own + k * D / 2;
            if constexpr (F::WORDS == 2) {
                uint4 x = __ldg((const uint4*)source), y = __ldg((const uint4*)(source + 2 * D));
                means[k][0] = {x.x, x.y}, means[k][1] = {x.z, x.w};
                deviations[k][0] = {y.x, y.y}, deviations[k][1] = {y.z, y.w};
            } else {
                means[k][0].read(source), deviations[k][0].read(source + 2 * D);
            }
        }
    }
};

// The token in row `row` (0..8) of block `block` (0..6) of a group. After the transpose a thread then has all of page
// t % 4 (blocks 0 to 3) and half a page more: 24 bytes of logits in two pieces, and most of the log-sum-exp.
__device__ __forceinline__ int token_of(int block, int row) {
    return block < 4 ? 8 * (row / 2) + 2 * block + row % 2 : 32 + 4 * (row / 2) + 2 * (block - 4) + row % 2;
}

// Codes of a frame: this thread's words of row t / 4 of every block.
template <int D, int SLOTS>
struct Codes {
    using F = Form<D, SLOTS>;
    Words<F::WORDS> blocks[6];

    __device__ __forceinline__ void read(const char* frame, int row, int quad) {
        const char* source = frame + 4 * D + 4 * F::WORDS * quad;
        const char* whole = plain(source + token_of(0, row) * F::ROW);
        const char* half = plain(source + token_of(4, row) * F::ROW);
#pragma unroll
        for (int block = 0; block < 6; block++) {
            blocks[block].read(block < 4 ? whole + 2 * block * F::ROW : half + 2 * (block - 4) * F::ROW);
        }
    }
};

// ---- what is made of it

// One column's query, rounded to 8 bits for its frame. `init` is where a sum begins: see `sums`.
template <int D, int SLOTS>
struct Quantised {
    using F = Form<D, SLOTS>;
    unsigned w8[4][F::WORDS];
    int init;
    float factor, offset;

    // `q` is zero where the thread has no channels or the column no head.
    __device__ __forceinline__ void make(const float (&q)[4][F::PER], const Statistics<D, SLOTS>& s, float root) {
        float w[4][F::PER];
        float most = 0, dot = 0;
#pragma unroll
        for (int k = 0; k < 4; k++) {
#pragma unroll
            for (int c = 0; c < F::PER; c++) {
                unsigned mean = s.means[k][c / 4].w[c / 2 % 2], deviation = s.deviations[k][c / 4].w[c / 2 % 2];
                w[k][c] = q[k][c] * (c % 2 ? high_bf16(deviation) : low_bf16(deviation));
                dot = fmaf(q[k][c], c % 2 ? high_bf16(mean) : low_bf16(mean), dot);
                most = fmaxf(most, fabsf(w[k][c]));
            }
        }
        most = fmaxf(most, __shfl_xor_sync(FULL, most, 1));
        most = fmaxf(most, __shfl_xor_sync(FULL, most, 2));
        float inverse = most > 1e-30f ? __fdiv_rn(127.0f, most) : 0.0f;
        int sum = 0;
#pragma unroll
        for (int k = 0; k < 4; k++) {
#pragma unroll
            for (int n = 0; n < F::WORDS; n++) {
                unsigned bits[4];
#pragma unroll
                for (int c = 0; c < 4; c++) {
                    // Two roundings, as the truth has them.
                    bits[c] = __float_as_uint(__fadd_rn(__fmul_rn(w[k][4 * n + c], inverse), MAGIC));
                }
                w8[k][n] = __byte_perm(__byte_perm(bits[0], bits[1], 0x0040), __byte_perm(bits[2], bits[3], 0x0040),
                                       0x5410);
                sum = __dp4a((int)w8[k][n], 0x01010101, sum);
            }
        }
        sum += __shfl_xor_sync(FULL, sum, 1);
        sum += __shfl_xor_sync(FULL, sum, 2);
        init = MAGIC_BITS - 6 * sum;
        factor = __fmul_rn(__fmul_rn(CODE_THRESHOLD, __fdiv_rn(most, 127.0f)), root) * 0.25f;
        offset = __fmul_rn(quad_sum(dot), root);
    }
};

// Sums of a frame: c[m] has blocks 2 m and 2 m + 1 as rows, each thread columns 2 (t % 4) + {0, 1}. As a number each is
// MAGIC + 4 (sum w8 code - 1.5 sum w8): odd quarters are taken with their codes times 4, as they lie, even ones times 1
// and then times 4; `init` brings the rest.
template <int D, int SLOTS>
__device__ __forceinline__ void sums(const Codes<D, SLOTS>& codes, const Quantised<D, SLOTS>& query,
                                     const int (&init)[2], int (&c)[3][4]) {
    constexpr int WORDS = Form<D, SLOTS>::WORDS;
#pragma unroll
    for (int m = 0; m < 3; m++) {
        auto &upper = codes.blocks[2 * m], &lower = codes.blocks[2 * m + 1];
#pragma unroll
        for (int odd = 0; odd < 2; odd++) {
            const unsigned mask = odd ? 0x0c0c0c0c : 0x03030303;
#pragma unroll
            for (int n = 0; n < 4; n++) {
                c[m][n] = odd ? c[m][n] * 4 + init[n % 2] : 0;
            }
            if constexpr (WORDS == 2) {
#pragma unroll
                for (int high = 0; high < 2; high++) {
                    int shift = 4 * high;
                    unsigned a[4] = {upper.w[0] >> shift & mask, lower.w[0] >> shift & mask,
                                     upper.w[1] >> shift & mask, lower.w[1] >> shift & mask};
                    multiply(c[m], a, query.w8[2 * high + odd][0], query.w8[2 * high + odd][1]);
                }
            } else {
                unsigned a[4] = {upper.w[0] & mask, lower.w[0] & mask, upper.w[0] >> 4 & mask,
                                 lower.w[0] >> 4 & mask};
                multiply(c[m], a, query.w8[odd][0], query.w8[2 + odd][0]);
            }
        }
    }
}

// Logits of two columns, rounded and held within bounds.
__device__ __forceinline__ unsigned logits(const int* c, const float (&factor)[2], const float (&offset)[2]) {
    float x = __fadd_rn(__fmul_rn(__int_as_float(c[0]) - MAGIC, factor[0]), offset[0]);
    float y = __fadd_rn(__fmul_rn(__int_as_float(c[1]) - MAGIC, factor[1]), offset[1]);
    const unsigned most = LOGIT_MOST << 16 | LOGIT_MOST, least = most | 0x80008000;
    __half2 pair = __floats2half2_rn(x, y);
    pair = __hmax2(__hmin2(pair, *(const __half2*)&most), *(const __half2*)&least);
    return *(unsigned*)&pair;
}

// Sum of 2^(x log2(e) - m) over `PAIRS` pairs.
template <int PAIRS>
__device__ __forceinline__ float weights(const unsigned* pairs, float m) {
    float sum = 0;
#pragma unroll
    for (int n = 0; n < PAIRS; n++) {
        float2 x = __half22float2(*(const __half2*)&pairs[n]);
        sum += exp2_fast(fmaf(x.x, LOG2_E, -m)) + exp2_fast(fmaf(x.y, LOG2_E, -m));
    }
    return sum;
}

__device__ __forceinline__ float largest(const unsigned* pairs, int count) {
    __half2 most = *(const __half2*)&pairs[0];
#pragma unroll
    for (int n = 1; n < count; n++) {
        most = __hmax2(most, *(const __half2*)&pairs[n]);
    }
    return fmaxf(__low2float(most), __high2float(most));
}

// Writes a thread's logits `x` (blocks 0 to 5 after the transpose) of one head and group, and their pages' scores.
__device__ __forceinline__ void write(const unsigned (&x)[6], __half* token_logits, float* page_scores, int quad,
                                      bool real) {
    float whole = largest(x, 4), half = largest(x + 4, 2);
    half = fmaxf(half, __shfl_xor_sync(FULL, half, 1));
    float whole_sum = weights<4>(x, whole * LOG2_E), half_sum = weights<2>(x + 4, half * LOG2_E);
    half_sum += __shfl_xor_sync(FULL, half_sum, 1);
    if (real) {
        // Nobody reads the logits soon: they leave the cache first.
        __stcs((uint4*)(token_logits + 8 * quad), uint4{x[0], x[1], x[2], x[3]});
        __stcs((uint2*)(token_logits + 32 + 4 * quad), uint2{x[4], x[5]});
        page_scores[quad] = whole + __logf(whole_sum);
        if (quad % 2 == 0) {
            page_scores[4 + quad / 2] = half + __logf(half_sum);
        }
    }
}

// This thread's channels of its column's rotated query.
template <int D, int SLOTS>
__device__ __forceinline__ void read_query(const Runtime& rt, int i, int head, float (&q)[4][Form<D, SLOTS>::PER]) {
    using F = Form<D, SLOTS>;
    int slot = threadIdx.x % 32 / 4 % SLOTS, quad = threadIdx.x % 4;
    bool real = slot < rt.group && quad < F::QUADS;
    const float* source = rt.rotated_q + ((size_t)i * rt.q_heads + head * rt.group + slot) * D + F::PER * quad;
#pragma unroll
    for (int k = 0; k < 4; k++) {
#pragma unroll
        for (int c = 0; c < F::PER; c += 4) {
            float4 x = real ? *(const float4*)(source + k * D / 4 + c) : float4{0, 0, 0, 0};
            q[k][c] = x.x, q[k][c + 1] = x.y, q[k][c + 2] = x.z, q[k][c + 3] = x.w;
        }
    }
}

// Who scores what. In a long launch the last quarter of all units is dealt in chunks, to whichever warp is ready: warps
// with equal shares end up to 8 % apart. A short launch is over before that pays.
template <typename S>
struct Deal {
    static constexpr int CHUNK = 2, LONG = 16; // units: of a chunk; of a warp, for a launch to be long

    int all, rest, workers; // units; the last ones, which are dealt; warps
    int taken;              // thread 0's: the chunk that comes next

    // This warp's first share.
    __device__ __forceinline__ S start(const Runtime& rt, int algorithm) {
        int worker = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
        workers = gridDim.x * (blockDim.x / 32);
        all = S::count(rt, algorithm);
        rest = all >= workers * LONG ? all / 4 : 0;
        long long shared = all - rest;
        int first = (int)(shared * worker / workers), end = (int)(shared * (worker + 1) / workers);
        S share;
        share.seek(rt, algorithm, first, end - first);
        return share;
    }

    // Takes the next chunk, after `wait_for_predecessor`. Which one it is need not be known before this share ends.
    __device__ __forceinline__ void take(const Runtime& rt) {
        if (rest > 0 && threadIdx.x % 32 == 0) {
            taken = atomicAdd(rt.arrivals, 1);
        }
    }

    // What a warp scores behind the end of a share; nothing where all is dealt.
    __device__ __forceinline__ void next(const Runtime& rt, int algorithm, S& share) {
        if (rest == 0) {
            return;
        }
        int number = __shfl_sync(FULL, taken, 0), first = number * CHUNK;
        if (first < rest) {
            share.seek(rt, algorithm, all - rest + first, min(CHUNK, rest - first));
            take(rt);
        } else if (number == (rest + CHUNK - 1) / CHUNK + workers - 1 && threadIdx.x % 32 == 0) {
            // Every warp takes one chunk too many: the last one leaves the counter as it was.
            *rt.arrivals = 0;
        }
    }
};

template <int D, int SLOTS>
__device__ __forceinline__ void score(const Runtime& rt, int algorithm, int layer) {
    using F = Form<D, SLOTS>;
    int thread = threadIdx.x % 32;
    int column = thread / 4, quad = thread % 4, slot = column % SLOTS, which = column / SLOTS;
    int words = min(quad, F::QUADS - 1);
    let_successor_start();
    Deal<typename F::Groups> deal;
    auto share = deal.start(rt, algorithm);
    if (share.left <= 0) {
        wait_for_predecessor();
        return;
    }
    float root = 1.0f / sqrtf((float)D), q[4][F::PER];
    SummaryRows table;
    Statistics<D, SLOTS> statistics;
    Codes<D, SLOTS> codes[F::FRAMES];
    // Frames of a unit; those of the next one are asked for. A head's last unit may have fewer: the last one again.
    auto find_frames = [&](const typename F::Groups& unit, const char* (&frames)[F::FRAMES]) {
        Frames<D> pool(rt, layer, unit.head);
        int first = unit.unit * F::FRAMES, last = unit.pieces - 1;
        table.seek(rt, unit.i, first);
#pragma unroll
        for (int n = 0; n < F::FRAMES; n++) {
            frames[n] = pool.at(table.at(min(first + n, last)));
        }
        int later = min(first + F::FRAMES + min(thread / F::LINES, F::FRAMES - 1), last);
        const char* next = pool.at(table.at(later));
        if (thread < F::FRAMES * F::LINES) {
            prefetch(next + thread % F::LINES * 128);
        }
    };
    auto read_statistics = [&](const char* (&frames)[F::FRAMES]) {
        statistics.read(F::FRAMES == 2 && which ? frames[F::FRAMES - 1] : frames[0], words);
    };
    const char* frames[F::FRAMES];
    find_frames(share, frames);
#pragma unroll
    for (int n = 0; n < F::FRAMES; n++) {
        codes[n].read(frames[n], column, words);
    }
    read_statistics(frames);
    // Frames are older than this step: the first of them are asked for while queries are still being rotated.
    wait_for_predecessor();
    deal.take(rt);
    read_query<D, SLOTS>(rt, share.i, share.head, q);
    while (true) {
        auto ahead = share;
        ahead.next(rt, algorithm);
        if (ahead.left <= 0) {
            deal.next(rt, algorithm, ahead);
        }
        bool more = ahead.left > 0;
        Quantised<D, SLOTS> query;
        query.make(q, statistics, root);
        if (more) {
            find_frames(ahead, frames);
            read_statistics(frames);
        }
        int init[2], kept[3][4];
        float factor[2], offset[2];
#pragma unroll
        for (int n = 0; n < 2; n++) {
            int source = 8 * quad + 4 * n; // a thread of column 2 quad + n
            init[n] = __shfl_sync(FULL, query.init, source);
            factor[n] = __shfl_sync(FULL, query.factor, source);
            offset[n] = __shfl_sync(FULL, query.offset, source);
        }
#pragma unroll
        for (int n = 0; n < F::FRAMES; n++) {
            int c[3][4];
            sums<D, SLOTS>(codes[n], query, init, c);
#pragma unroll
            for (int m = 0; m < 12; m++) {
                kept[m / 4][m % 4] = n == 0 || 2 * quad / SLOTS == n ? c[m / 4][m % 4] : kept[m / 4][m % 4];
            }
            if (more) {
                codes[n].read(frames[n], column, words);
            }
        }
        unsigned x[6];
#pragma unroll
        for (int block = 0; block < 6; block++) {
            x[block] = transpose(logits(kept[block / 2] + block % 2 * 2, factor, offset));
        }
        int group = share.unit * F::FRAMES + which;
        size_t row = (size_t)share.i * rt.q_heads + share.head * rt.group + slot;
        write(x, rt.token_logits + row * rt.max_tokens + group * SKETCH_TOKENS,
              rt.page_scores + row * rt.max_pages + group * GROUP_PAGES, quad,
              slot < rt.group && group < share.pieces);
        if (!more) {
            return;
        }
        if (ahead.i != share.i || ahead.head != share.head) {
            read_query<D, SLOTS>(rt, ahead.i, ahead.head, q);
        }
        share = ahead;
    }
}

// ---- rotated queries

// Eight outputs a warp, four at a time: eight threads share a row of the rotation. The rotation and lanes are older
// than a step's layers: they are read while the kernel before this one still runs.
template <int D>
__device__ __forceinline__ void rotate(const Runtime& rt, int algorithm, const View& q, const float* rotation) {
    __shared__ float4 queries[GROUP_MAX][D / 4];
    let_successor_start();
    int i = blockIdx.x, head = blockIdx.y, thread = threadIdx.x % 32;
    int first = blockIdx.z * 32 + threadIdx.x / 32 * 8 + thread / 8;
    float4 r[2][D / 32];
#pragma unroll
    for (int pass = 0; pass < 2; pass++) {
        const float4* row = (const float4*)(rotation + ((size_t)head * D + first + 4 * pass) * D) + thread % 8;
#pragma unroll
        for (int m = 0; m < D / 32; m++) {
            r[pass][m] = __ldg(row + 8 * m);
        }
    }
    bool selects = i < *rt.n_active;
    if (selects) {
        const Lane& lane = rt.lanes[rt.active[i]];
        selects = lane.algorithm == algorithm && pages_of_work(lane, INDEXED) != 0;
    }
    wait_for_predecessor();
    if (!selects) {
        return;
    }
    for (int n = threadIdx.x; n < rt.group * D; n += blockDim.x) {
        ((float*)queries)[n] = load(q, i, head * rt.group * D + n);
    }
    __syncthreads();
#pragma unroll
    for (int h = 0; h < GROUP_MAX; h++) {
        if (h < rt.group) {
            float sums[2] = {};
#pragma unroll
            for (int m = 0; m < D / 32; m++) {
                float4 x = queries[h][thread % 8 + 8 * m];
#pragma unroll
                for (int pass = 0; pass < 2; pass++) {
                    float4 y = r[pass][m];
                    sums[pass] = fmaf(y.x, x.x, fmaf(y.y, x.y, fmaf(y.z, x.z, fmaf(y.w, x.w, sums[pass]))));
                }
            }
#pragma unroll
            for (int pass = 0; pass < 2; pass++) {
                float sum = quad_sum(sums[pass]);
                sum += __shfl_xor_sync(FULL, sum, 4);
                if (thread % 8 == h) {
                    rt.rotated_q[((size_t)i * rt.q_heads + head * rt.group + h) * D + first + 4 * pass] = sum;
                }
            }
        }
    }
}

} // namespace

// rotated_q = R_k q of lanes that select. Grid (rows, kv_heads, d / 32); 16 d bytes of shared memory at most. Reads the
// rotation, 4 d^2 bytes a KV head, once a lane, from L2.
#define ROTATE_QUERY(D)                                                                                                \
    extern "C" __global__ void __launch_bounds__(128)                                                                  \
        rotate_query_##D(const __grid_constant__ Runtime rt, int algorithm, View q, const float* rotation) {           \
        rotate<D>(rt, algorithm, q, rotation);                                                                         \
    }
ROTATE_QUERY(64)
ROTATE_QUERY(96)
ROTATE_QUERY(128)

// token_logits and page_scores of lanes that select; `_4` for groups of up to 4 query heads, `_8` up to 8. Any grid of
// warps, which share all groups; no shared memory; counts in arrivals[0]. A group of 48 tokens and a KV head is 16 d
// bytes read, once, and 120 written for each query head: 20 lanes of 55,000 tokens, 32 query and 8 KV heads, d 128:
// 375 + 88 MB.
#define SCORE_CODES(D, SLOTS)                                                                                          \
    extern "C" __global__ void __launch_bounds__(128, 3)                                                               \
        score_codes_##D##_##SLOTS(const __grid_constant__ Runtime rt, int algorithm, int layer) {                      \
        score<D, SLOTS>(rt, algorithm, layer);                                                                         \
    }
SCORE_CODES(64, 4)
SCORE_CODES(64, 8)
SCORE_CODES(96, 4)
SCORE_CODES(96, 8)
SCORE_CODES(128, 4)
SCORE_CODES(128, 8)
