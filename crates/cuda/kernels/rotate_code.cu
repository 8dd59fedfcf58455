// Index of the sketch: rotated keys and values of 48-token groups as 2-bit codes and statistics. The frame's layout is
// drawn in backend/src/sketch.rs.
//
// A rotation is f32 and keys are bf16: the f32 is split into three bf16 parts that hold all of its bits, and the matrix
// units multiply each part with the keys exactly. Sums over 16 inputs stay in the matrix unit, which cuts what does not
// fit; they are added up in f32 outside of it, so that the whole is as exact as a chain of multiply-adds.
#include "block.cuh"

constexpr float THRESHOLD = 0.996f;
constexpr float DEVIATION_LEAST = 1e-6f;
constexpr int GROUPS_OF_8 = SKETCH_TOKENS / 8;

// A block: one warp for every 16 output channels.
template <int D>
constexpr int ROTATE_THREADS = D * 2;

// Elements of a staged token (padded, so that ldmatrix meets every bank once), and of a rotated one.
template <int D>
constexpr int STAGED = D + 8;
template <int D>
constexpr int ROTATED = D + 4;

// Shared memory of a block, busy lanes behind it; mirrored in src/index.rs.
template <int D>
struct RotateShared {
    bf16 tokens[2][SKETCH_TOKENS][STAGED<D>];      // this group's and the next one's
    float rotated[SKETCH_TOKENS][ROTATED<D>];      // values
    unsigned char codes[SKETCH_TOKENS * (D / 4)];  // keys
};

__device__ __forceinline__ unsigned packed(bf16 low, bf16 high) {
    __nv_bfloat162 pair = __halves2bfloat162(low, high);
    return *(unsigned*)&pair;
}

// x = high + middle + low, each bf16.
__device__ __forceinline__ void split(float2 x, unsigned& high, unsigned& middle, unsigned& low) {
    bf16 h0 = __float2bfloat16_rn(x.x), h1 = __float2bfloat16_rn(x.y);
    float r0 = x.x - __bfloat162float(h0), r1 = x.y - __bfloat162float(h1);
    bf16 m0 = __float2bfloat16_rn(r0), m1 = __float2bfloat16_rn(r1);
    high = packed(h0, h1);
    middle = packed(m0, m1);
    low = packed(__float2bfloat16_rn(r0 - __bfloat162float(m0)), __float2bfloat16_rn(r1 - __bfloat162float(m1)));
}

// sums [6][16][8] = a [16][16] b [6][16][8], or added to. Volatile: the compiler would run many steps at once, for
// which there are no registers.
template <bool FIRST>
__device__ __forceinline__ void multiply(float (&sums)[GROUPS_OF_8][4], const unsigned (&a)[4],
                                         const unsigned (&b)[GROUPS_OF_8 / 2][4]) {
#pragma unroll
    for (int n = 0; n < GROUPS_OF_8; n++) {
        float* c = sums[n];
        unsigned b0 = b[n / 2][n % 2 * 2], b1 = b[n / 2][n % 2 * 2 + 1];
        float zero = 0.0f;
        if (FIRST) {
            asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
                         "{%8, %9}, {%10, %10, %10, %10};"
                         : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1), "f"(zero));
        } else {
            asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
                         "{%8, %9}, {%0, %1, %2, %3};"
                         : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                         : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
        }
    }
}

__device__ __forceinline__ void load_matrices(unsigned (&out)[4], const bf16* source) {
    unsigned at = (unsigned)__cvta_generic_to_shared(source);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(at)
                 : "memory");
}

// Output channel of row `r` (0..16) of a warp's tile. Keys: the four channels that share a code byte are rows
// j, j + 4, j + 8, j + 12 of one warp. Values: in order.
template <int D>
__device__ __forceinline__ int channel_of(bool values, int warp, int r) {
    return values ? warp * 16 + r : warp * 4 + (r & 3) + (r >> 2) * (D / 4);
}

// The warp's 16 rows of a rotation [d][d] in registers, as the matrix units take them.
template <int D>
struct Rotation {
    unsigned high[D / 16][4], middle[D / 16][4], low[D / 16][4];

    __device__ __forceinline__ void load(const float* matrix, bool values) {
        int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, pair = threadIdx.x % 4 * 2;
#pragma unroll
        for (int step = 0; step < D / 16; step++) {
#pragma unroll
            for (int n = 0; n < 4; n++) {
                int c = channel_of<D>(values, warp, g + n % 2 * 8);
                float2 x = *(const float2*)(matrix + (size_t)c * D + step * 16 + n / 2 * 8 + pair);
                split(x, high[step][n], middle[step][n], low[step][n]);
            }
        }
    }

    // rotated[8 tokens][row] of the staged group: x[n][e] is token 8 n + 2 (thread % 4) + e % 2, row
    // thread / 4 + 8 (e / 2).
    __device__ __forceinline__ void apply(const bf16 (*tokens)[STAGED<D>], float (&x)[GROUPS_OF_8][4]) const {
        int thread = threadIdx.x % 32;
        const bf16* source = &tokens[thread % 8 + thread / 16 * 8][thread / 8 % 2 * 8];
#pragma unroll
        for (int n = 0; n < GROUPS_OF_8; n++) {
            x[n][0] = x[n][1] = x[n][2] = x[n][3] = 0.0f;
        }
#pragma unroll
        for (int step = 0; step < D / 16; step++) {
            unsigned b[GROUPS_OF_8 / 2][4];
            float sums[GROUPS_OF_8][4];
#pragma unroll
            for (int n = 0; n < GROUPS_OF_8 / 2; n++) {
                load_matrices(b[n], source + n * 16 * STAGED<D> + step * 16);
            }
            // Six chains side by side hide the matrix unit's latency.
            multiply<true>(sums, low[step], b);
            multiply<false>(sums, middle[step], b);
            multiply<false>(sums, high[step], b);
#pragma unroll
            for (int n = 0; n < GROUPS_OF_8; n++) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    x[n][e] += sums[n][e];
                }
            }
            if (step % 2 == 1) {
                __syncwarp(); // tokens are not read further ahead: there are no registers for them
            }
        }
    }
};

// Mean and deviation as they are stored.
struct Statistics {
    bf16 mean_bits, deviation_bits;
    float mean, threshold;

    __device__ __forceinline__ Statistics(float exact_mean, float variance) {
        mean_bits = __float2bfloat16_rn(exact_mean);
        float deviation; // one instruction, off by less than a rounding of f32
        asm("sqrt.approx.f32 %0, %1;" : "=f"(deviation) : "f"(variance));
        deviation_bits = __float2bfloat16_rn(fmaxf(deviation, DEVIATION_LEAST));
        mean = __bfloat162float(mean_bits);
        threshold = THRESHOLD * __bfloat162float(deviation_bits);
    }

    __device__ __forceinline__ unsigned code(float x) const {
        float centred = x - mean;
        return (centred > -threshold) + (centred > 0.0f) + (centred > threshold);
    }
};

// Sum over the four threads that share a row of a warp's tile.
__device__ __forceinline__ float row_sum(float x) {
    x += __shfl_xor_sync(FULL, x, 1);
    return x + __shfl_xor_sync(FULL, x, 2);
}

// Means, deviations and codes of a group's keys: statistics per channel, over the tokens that four threads hold.
template <int D>
__device__ __forceinline__ void code_keys(const float (&x)[GROUPS_OF_8][4], RotateShared<D>& shared, bf16* target) {
    int warp = threadIdx.x / 32, thread = threadIdx.x % 32, g = thread / 4;
    unsigned bytes[3] = {0, 0, 0}; // of this thread's twelve tokens, with the fields of its two channels
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float sum = 0.0f, squares = 0.0f;
#pragma unroll
        for (int n = 0; n < GROUPS_OF_8; n++) {
            sum += x[n][half * 2] + x[n][half * 2 + 1];
        }
        float mean = row_sum(sum) * (1.0f / SKETCH_TOKENS);
#pragma unroll
        for (int n = 0; n < GROUPS_OF_8; n++) {
            float a = x[n][half * 2] - mean, b = x[n][half * 2 + 1] - mean;
            squares += a * a + b * b;
        }
        Statistics statistics(mean, row_sum(squares) * (1.0f / SKETCH_TOKENS));
        int row = g + half * 8, c = channel_of<D>(false, warp, row);
        if (thread % 4 == 0) {
            target[c] = statistics.mean_bits;
            target[D + c] = statistics.deviation_bits;
        }
#pragma unroll
        for (int n = 0; n < GROUPS_OF_8; n++) {
#pragma unroll
            for (int e = 0; e < 2; e++) {
                int token = n * 2 + e;
                bytes[token / 4] |= statistics.code(x[n][half * 2 + e]) << (2 * (row >> 2) + 8 * (token % 4));
            }
        }
    }
#pragma unroll
    for (int n = 0; n < 3; n++) {
        bytes[n] |= __shfl_xor_sync(FULL, bytes[n], 16);
    }
    if (g < 4) {
#pragma unroll
        for (int token = 0; token < 12; token++) {
            int t = token / 2 * 8 + thread % 4 * 2 + token % 2;
            shared.codes[t * (D / 4) + warp * 4 + g] = bytes[token / 4] >> (8 * (token % 4));
        }
    }
    __syncthreads();
    for (int n = threadIdx.x; n < SKETCH_TOKENS * D / 4 / 16; n += ROTATE_THREADS<D>) {
        ((uint4*)(target + 2 * D))[n] = ((const uint4*)shared.codes)[n];
    }
}

// Sums over the warp, all under way together.
template <int N>
__device__ __forceinline__ void warp_sums(float (&x)[N]) {
#pragma unroll
    for (int at = 16; at > 0; at /= 2) {
#pragma unroll
        for (int n = 0; n < N; n++) {
            x[n] += __shfl_xor_sync(FULL, x[n], at);
        }
    }
}

// Codes and statistics of a group's values, per token, and the frame's zero end.
template <int D>
__device__ __forceinline__ void code_values(const float (&x)[GROUPS_OF_8][4], RotateShared<D>& shared, bf16* target) {
    int warp = threadIdx.x / 32, thread = threadIdx.x % 32, g = thread / 4;
#pragma unroll
    for (int n = 0; n < GROUPS_OF_8; n++) {
#pragma unroll
        for (int e = 0; e < 4; e++) {
            shared.rotated[n * 8 + thread % 4 * 2 + e % 2][warp * 16 + g + e / 2 * 8] = x[n][e];
        }
    }
    __syncthreads();
    constexpr int EACH = SKETCH_TOKENS / (ROTATE_THREADS<D> / 32);
    bool has = thread < D / 4;
    unsigned char* codes = (unsigned char*)(target + 8 * D);
    float y[EACH][4], means[EACH], squares[EACH];
#pragma unroll
    for (int n = 0; n < EACH; n++) {
#pragma unroll
        for (int k = 0; k < 4; k++) {
            y[n][k] = has ? shared.rotated[warp * EACH + n][thread + k * (D / 4)] : 0.0f;
        }
        means[n] = (y[n][0] + y[n][1]) + (y[n][2] + y[n][3]);
    }
    warp_sums(means);
#pragma unroll
    for (int n = 0; n < EACH; n++) {
        means[n] *= 1.0f / D;
        squares[n] = 0.0f;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            float centred = has ? y[n][k] - means[n] : 0.0f;
            squares[n] += centred * centred;
        }
    }
    warp_sums(squares);
#pragma unroll
    for (int n = 0; n < EACH; n++) {
        int t = warp * EACH + n;
        Statistics statistics(means[n], squares[n] * (1.0f / D));
        unsigned byte = 0;
#pragma unroll
        for (int k = 0; k < 4; k++) {
            byte |= statistics.code(y[n][k]) << (2 * k);
        }
        if (has) {
            codes[t * (D / 4) + thread] = byte;
        }
        if (thread == 0) {
            ((unsigned*)(target + 14 * D))[t] = packed(statistics.mean_bits, statistics.deviation_bits);
        }
    }
    for (int n = threadIdx.x; n < 2 * D - 2 * SKETCH_TOKENS; n += ROTATE_THREADS<D>) {
        target[14 * D + 2 * SKETCH_TOKENS + n] = __float2bfloat16_rn(0.0f);
    }
}

// Three 16-byte pieces of a group for each thread: 48 tokens of d / 8 pieces.
template <int D>
struct Pieces {
    unsigned rows[3];    // of the pages that they lie in
    unsigned summary_row; // of the group

    __device__ __forceinline__ void look_up(const Unit& unit) {
        summary_row = unit.summary_rows[unit.first / GROUP_PAGES];
#pragma unroll
        for (int n = 0; n < 3; n++) {
            int token = threadIdx.x / (D / 8) + n * 16, page = unit.first + token / PAGE_TOKENS;
            rows[n] = page < unit.end ? unit.kv_rows[page] : 0;
        }
    }

    // Starts copies into shared memory, as one commit.
    __device__ __forceinline__ void copy(const Runtime& rt, int layer, int head, bool values,
                                         bf16 (*tokens)[STAGED<D>]) const {
#pragma unroll
        for (int n = 0; n < 3; n++) {
            int token = threadIdx.x / (D / 8) + n * 16, c = threadIdx.x % (D / 8) * 8;
            const bf16* source = home_frame(rt, rows[n], layer, head) + (values ? PAGE_TOKENS * D : 0);
            source += token % PAGE_TOKENS * D + c;
            unsigned to = (unsigned)__cvta_generic_to_shared(&tokens[token][c]);
            asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(source) : "memory");
        }
    }
};

__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `LATER` commits of this thread are under way.
template <int LATER>
__device__ __forceinline__ void copies_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LATER) : "memory");
}

// A lane that has a group to code, and the group's first page.
struct Busy {
    int lane, first;
};

// This block's share of the units: numbers first, first + step, ... below `count`; of lanes, entries of `busy`.
struct Share {
    const Busy* busy;
    int first, step, count;

    __device__ __forceinline__ Unit unit(const Runtime& rt, const Units& units, int n) const {
        if (!busy) {
            int page = units.first + n * GROUP_PAGES;
            return {units.kv_rows, units.summary_rows, page, page + GROUP_PAGES};
        }
        size_t table = (size_t)busy[n].lane * rt.max_pages;
        return {rt.kv_rows + table, rt.summary_rows + table, busy[n].first, busy[n].first + GROUP_PAGES};
    }
};

// Codes of keys or values of a share of the units; the next group is on its way while one is rotated.
template <int D, bool VALUES>
__device__ __forceinline__ void rotate_groups(const Runtime& rt, const Units& units, const Share& share, int layer,
                                              const float* matrix, RotateShared<D>& shared) {
    if (share.count <= share.first) {
        return;
    }
    int head = blockIdx.y, stage = 0;
    Pieces<D> pieces;
    pieces.look_up(share.unit(rt, units, share.first));
    pieces.copy(rt, layer, head, VALUES, shared.tokens[0]);
    copies_commit();
    unsigned summary_row = pieces.summary_row;
    Rotation<D> rotation;
    rotation.load(matrix, VALUES);
    if (share.first + share.step < share.count) {
        pieces.look_up(share.unit(rt, units, share.first + share.step));
    }
    for (int number = share.first; number < share.count; number += share.step, stage ^= 1) {
        if (number + share.step < share.count) {
            pieces.copy(rt, layer, head, VALUES, shared.tokens[stage ^ 1]);
        }
        copies_commit();
        copies_wait<1>();
        __syncthreads();
        float x[GROUPS_OF_8][4];
        rotation.apply(shared.tokens[stage], x);
        bf16* target = frame(rt, summary_row, layer, head);
        summary_row = pieces.summary_row;
        if (number + 2 * share.step < share.count) {
            pieces.look_up(share.unit(rt, units, number + 2 * share.step));
        }
        if (VALUES) {
            code_values<D>(x, shared, target);
        } else {
            code_keys<D>(x, shared, target);
        }
        __syncthreads();
    }
}

// Those of the first `count` active lanes that have a group to code; returns how many.
template <int D>
__device__ __forceinline__ int find_busy(const Runtime& rt, const Units& units, int count, Busy* busy) {
    __shared__ int sums[ROTATE_THREADS<D> / 32];
    int found = 0;
    for (int first = 0; first < count; first += ROTATE_THREADS<D>) {
        int number = first + threadIdx.x, total;
        Unit unit = {nullptr, nullptr, 0, 0};
        if (number < count) {
            unit = unit_of(rt, units, number, GROUP_PAGES);
        }
        bool is_busy = unit.first < unit.end;
        int before = sum_before<ROTATE_THREADS<D>>((int)is_busy, sums, total);
        if (is_busy) {
            busy[found + before] = {rt.active[number], unit.first};
        }
        found += total;
    }
    __syncthreads();
    return found;
}

// Codes and statistics of the units' 48-token groups. Grid (blocks that take turns, kv_heads, keys | values), 2 d
// threads: a warp has 16 output channels of the rotation in registers, split in three. Of lanes, the few that are at a
// border are looked for first: most steps find none.
// Shared memory: RotateShared, 53 KiB at d = 128, and 8 bytes a lane.
// FLOP: 3 x 2 x 2 x 48 d^2 a group and head, 52 GFLOP a layer at 32K tokens x 8 heads x 128: 0.1 ms at 500 TFLOP/s (the
// same in f32 outside the matrix units: 17 GFLOP, 0.3 ms at best). Bytes: K and V once, 150 MB: 50 us. Two warps on
// each scheduler wait for one another between products and codes: 0.28 ms (H200).
template <int D>
__device__ __forceinline__ void rotate_code(const Runtime& rt, const Units& units, int count, int layer,
                                            const float* keys, const float* values) {
    extern __shared__ __align__(16) unsigned char shared_bytes[];
    RotateShared<D>& shared = *(RotateShared<D>*)shared_bytes;
    let_successor_start();
    wait_for_predecessor();
    Share share = {nullptr, (int)blockIdx.x, (int)gridDim.x, count};
    if (!units.kv_rows) {
        Busy* busy = (Busy*)(shared_bytes + sizeof(shared));
        share.busy = busy;
        share.count = find_busy<D>(rt, units, count, busy);
    }
    size_t matrix = (size_t)blockIdx.y * D * D;
    if (blockIdx.z == 1) {
        rotate_groups<D, true>(rt, units, share, layer, values + matrix, shared);
    } else {
        rotate_groups<D, false>(rt, units, share, layer, keys + matrix, shared);
    }
}

extern "C" __global__ void __launch_bounds__(128, 1)
    rotate_code_64(const __grid_constant__ Runtime rt, const __grid_constant__ Units units, int count, int layer,
                   const float* keys, const float* values) {
    rotate_code<64>(rt, units, count, layer, keys, values);
}

extern "C" __global__ void __launch_bounds__(192, 1)
    rotate_code_96(const __grid_constant__ Runtime rt, const __grid_constant__ Units units, int count, int layer,
                   const float* keys, const float* values) {
    rotate_code<96>(rt, units, count, layer, keys, values);
}

extern "C" __global__ void __launch_bounds__(256, 1)
    rotate_code_128(const __grid_constant__ Runtime rt, const __grid_constant__ Units units, int count, int layer,
                    const float* keys, const float* values) {
    rotate_code<128>(rt, units, count, layer, keys, values);
}
