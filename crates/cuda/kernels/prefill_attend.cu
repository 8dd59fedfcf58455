// Causal attention of a unit of prefill over staged keys and values, flash style, by mma.sync.
//
// prefill_attend_<d>: grid [row blocks * kv_heads, parts], 128 threads, shared memory 768 * d bytes (96 KiB at 128: two
// blocks on a multiprocessor of compute capability 9.0). A block takes one KV head and 128 rows, a row being one query
// head of one token: row r of a KV head is head r % group of token r / group. So keys and values that a block brings in
// serve the whole group, and one token alone has only one block. Each warp keeps the sums of 32 rows in registers.
//
// Estimate, 32 query heads of 128, 8 KV heads, 32768 tokens: 8.8 TFLOP, 27.5 ms at 320 TFLOP/s. mma.sync does 643
// TFLOP/s from registers (H200); but a block's step of 64 keys reads 160 KiB of shared memory and writes 32, 1536
// clocks of it beside 1536 of products, and its exponentials take 512. Measured (H200): 20.0 ms, 440 TFLOP/s; products
// run in 66 % of the clocks, at 1.66 GHz, since the card is at its power limit. More rows a warp, or queries in
// registers, would read less and do not fit in 255 registers.
//
// Keys come in steps of 64 at absolute multiples of 64, and no row's numbers depend on another's: without parts, a row
// is the same bit for bit whatever unit it came in.

#include "instructions.cuh"
#include "runtime.cuh"

namespace {

constexpr int WARPS = 4;
constexpr int THREADS = 32 * WARPS;
constexpr int TILES = 2; // of 16 rows, each warp's: two share what is read of keys and values
constexpr int WARP_ROWS = 16 * TILES;
constexpr int ROWS = WARP_ROWS * WARPS;
constexpr int KEYS = 64; // of a step
constexpr int KEY_TILES = KEYS / 8;
constexpr float LOG2_E = 1.44269504f;

// The offset of a row that has seen no key: below any logit, and finite, so that no difference is NaN.
constexpr float LOWEST = -1e38f;

// Weights are at most 2^this.
constexpr float SLACK = 8.0f;

// ---- instructions

// 16 bytes to shared memory: those of `source` or, where they do not count, zeros.
__device__ __forceinline__ void copy_async(unsigned target, const void* source, bool counts) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(target), "l"(source),
                 "r"(counts ? 16 : 0)
                 : "memory");
}

__device__ __forceinline__ void copies_wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }

__device__ __forceinline__ void load_matrices(unsigned (&out)[4], unsigned source) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(source));
}

__device__ __forceinline__ void load_transposed(unsigned (&out)[4], unsigned source) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
                 : "r"(source));
}

__device__ __forceinline__ unsigned pack(float low, float high) {
    __nv_bfloat162 two = __floats2bfloat162_rn(low, high);
    return *(unsigned*)&two;
}

// Over the four threads that share a row.
__device__ __forceinline__ float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(FULL, x, 1));
    return fmaxf(x, __shfl_xor_sync(FULL, x, 2));
}

__device__ __forceinline__ float row_sum(float x) {
    x += __shfl_xor_sync(FULL, x, 1);
    return x + __shfl_xor_sync(FULL, x, 2);
}

// ---- shared memory: rows of `D` elements in pieces of 16 bytes, exchanged so that ldmatrix meets every bank once

template <int D>
constexpr int PITCH = 2 * D;

template <int D>
constexpr int STEP_BYTES = KEYS * PITCH<D>;

// Pieces that are exchanged among themselves.
template <int D>
constexpr int EXCHANGED = D % 64 == 0 ? 8 : 4;

// What a row's pieces are exchanged by.
template <int D>
__device__ __forceinline__ int exchange(int row) {
    return D % 64 == 0 ? row & 7 : row >> 1 & 3;
}

// Where a lane reads of a tile of 16 rows for ldmatrix, from the tile's start: piece 0 or 1 of a row, exchanged.
template <int D>
__device__ __forceinline__ unsigned reader(int row, int piece) {
    return row * PITCH<D> + (piece ^ exchange<D>(row)) * 16;
}

// The same of columns 16 * i and following, given the address of the first columns. What is exchanged lies in aligned
// 128 (64) bytes.
template <int D>
__device__ __forceinline__ unsigned columns(unsigned address, int i) {
    constexpr int PAIRS = EXCHANGED<D> / 2;
    return (address ^ (i % PAIRS * 32)) + i / PAIRS * (EXCHANGED<D> * 16);
}

// ---- a block's work

// What a block works on.
struct Block {
    int head, first_row, rows; // rows of the unit, of this head
    int begin, end;            // keys
};

// What a warp has of its rows so far: element e of a tile's 8 columns is row e / 2 * 8 + lane / 4 of the tile and
// column lane % 4 * 2 + e % 2.
template <int D>
struct State {
    float sums[TILES][D / 8][4];
    float offset[TILES][2]; // weights are 2^(logit - offset), logits times log2 e
    float total[TILES][2];  // this thread's part
};

typedef float Logits[TILES][KEY_TILES][4];
typedef unsigned Weights[TILES][4]; // of 16 keys, as the first operand of the product with values

template <int D>
__device__ __forceinline__ constexpr float scale() {
    return (D == 64 ? 0.125f : D == 96 ? 0.102062073f : 0.0883883476f) * LOG2_E;
}

// Brings a step's keys or values; zeros for those from `count` on: what lies behind the unit may be NaN.
template <int D>
__device__ __forceinline__ void bring(unsigned target, const bf16* source, int count) {
    constexpr int ROWS_AT_ONCE = THREADS / EXCHANGED<D>;
    int row = threadIdx.x / EXCHANGED<D>, piece = threadIdx.x % EXCHANGED<D>;
    source += row * D + piece * 8;
    target += row * PITCH<D> + (piece ^ exchange<D>(row)) * 16;
#pragma unroll
    for (int r = 0; r < KEYS; r += ROWS_AT_ONCE) {
#pragma unroll
        for (int c = 0; c < D; c += 8 * EXCHANGED<D>) {
            copy_async(target + r * PITCH<D> + c * 2, source + r * D + c, row + r < count);
        }
    }
}

// Brings the block's queries; f32 ones are rounded. Zeros behind the last row.
template <int D>
__device__ void bring_queries(const Runtime& rt, unsigned char* shared, const Block& block, const View& q) {
    unsigned target = (unsigned)__cvta_generic_to_shared(shared);
    for (int n = threadIdx.x; n < ROWS * (D / 8); n += THREADS) {
        int r = n / (D / 8), piece = n % (D / 8), row = block.first_row + r;
        bool counts = row < block.rows;
        row = counts ? row : 0;
        size_t from = (size_t)(row / rt.group) * q.cols + (block.head * rt.group + row % rt.group) * D + piece * 8;
        int to = r * PITCH<D> + (piece ^ exchange<D>(r)) * 16;
        if (q.is_bf16) {
            copy_async(target + to, (const bf16*)q.data + from, counts);
        } else {
            const float* x = (const float*)q.data + from;
            uint4 eight = make_uint4(pack(x[0], x[1]), pack(x[2], x[3]), pack(x[4], x[5]), pack(x[6], x[7]));
            *(uint4*)(shared + to) = counts ? eight : make_uint4(0, 0, 0, 0);
        }
    }
}

// logits = queries * keys, given where the lane reads them
template <int D>
__device__ __forceinline__ void score(Logits& logits, unsigned queries, unsigned keys) {
#pragma unroll
    for (int t = 0; t < TILES; t++) {
#pragma unroll
        for (int c = 0; c < KEY_TILES; c++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                logits[t][c][e] = 0.0f;
            }
        }
    }
#pragma unroll
    for (int i = 0; i < D / 16; i++) {
        unsigned q[TILES][4];
#pragma unroll
        for (int t = 0; t < TILES; t++) {
            load_matrices(q[t], columns<D>(queries, i) + t * 16 * PITCH<D>);
        }
#pragma unroll
        for (int c = 0; c < KEY_TILES; c += 2) {
            unsigned k[4];
            load_matrices(k, columns<D>(keys, i) + c * 8 * PITCH<D>);
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                multiply(logits[t][c], q[t], k[0], k[1]);
                multiply(logits[t][c + 1], q[t], k[2], k[3]);
            }
        }
    }
}

// Hides keys behind each row's own; `row` and `key` are the thread's first of the unit and of the step.
__device__ __forceinline__ void hide(Logits& logits, int row, int group, int first, int key) {
#pragma unroll
    for (int t = 0; t < TILES; t++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            int last = first + (row + t * 16 + half * 8) / group;
#pragma unroll
            for (int c = 0; c < KEY_TILES; c++) {
#pragma unroll
                for (int e = 0; e < 2; e++) {
                    if (key + c * 8 + e > last) {
                        logits[t][c][half * 2 + e] = -INFINITY;
                    }
                }
            }
        }
    }
}

// Raises offsets that a step's logits pass by more than `SLACK`. An offset need not be the largest logit so far, only
// near enough that no weight is huge: in most steps no row's is raised, and sums are not rescaled. A row's is raised
// for its own logits alone.
template <int D>
__device__ __forceinline__ void raise_offsets(const Logits& logits, State<D>& state) {
    float largest[TILES][2];
    bool low = false;
#pragma unroll
    for (int t = 0; t < TILES; t++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float x = -INFINITY;
#pragma unroll
            for (int c = 0; c < KEY_TILES; c++) {
                x = fmaxf(x, fmaxf(logits[t][c][half * 2], logits[t][c][half * 2 + 1]));
            }
            largest[t][half] = x * scale<D>();
            low |= largest[t][half] > state.offset[t][half] + SLACK;
        }
    }
    if (!__any_sync(FULL, low)) {
        return;
    }
#pragma unroll
    for (int t = 0; t < TILES; t++) {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            float before = state.offset[t][half], x = row_max(largest[t][half]);
            float after = x > before + SLACK ? x : before, factor = exp2_fast(before - after);
            state.offset[t][half] = after;
            state.total[t][half] *= factor;
#pragma unroll
            for (int c = 0; c < D / 8; c++) {
                state.sums[t][c][half * 2] *= factor;
                state.sums[t][c][half * 2 + 1] *= factor;
            }
        }
    }
}

// Weights of a step's keys 16 * i and following, of which a thread has 8 pairs: `from..to` of them.
template <int D>
__device__ __forceinline__ void weigh(Weights& weights, const Logits& logits, State<D>& state, int i, int from,
                                      int to) {
#pragma unroll
    for (int pair = from; pair < to; pair++) {
        int t = pair / 4, c = pair / 2 % 2, half = pair % 2;
        const float(&four)[4] = logits[t][2 * i + c];
        float x = exp2_fast(fmaf(four[half * 2], scale<D>(), -state.offset[t][half]));
        float y = exp2_fast(fmaf(four[half * 2 + 1], scale<D>(), -state.offset[t][half]));
        state.total[t][half] += x + y;
        weights[t][c * 2 + half] = pack(x, y);
    }
}

// sums += weights * values, given where the lane reads them; the next 16 keys' weights are made among the products.
template <int D>
__device__ __forceinline__ void add_values(State<D>& state, const Logits& logits, unsigned values) {
    constexpr int COLUMNS = D / 16;
    Weights weights[KEYS / 16];
    weigh(weights[0], logits, state, 0, 0, 8);
#pragma unroll
    for (int i = 0; i < KEYS / 16; i++) {
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) {
            unsigned v[4];
            load_transposed(v, columns<D>(values, c) + i * 16 * PITCH<D>);
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                multiply(state.sums[t][2 * c], weights[i][t], v[0], v[1]);
                multiply(state.sums[t][2 * c + 1], weights[i][t], v[2], v[3]);
            }
            if (i + 1 < KEYS / 16) {
                weigh(weights[i + 1], logits, state, i + 1, c * 8 / COLUMNS, (c + 1) * 8 / COLUMNS);
            }
        }
    }
}

// One half tile's row to `out` or, where the keys are in parts, to the part's row of `rt.splits`.
template <int D>
__device__ __forceinline__ void put(const Runtime& rt, const Block& block, const View& out, const State<D>& state,
                                    int t, int half, int row) {
    float total = row_sum(state.total[t][half]);
    if (row >= block.rows) {
        return;
    }
    float factor = total == 0.0f ? 0.0f : 1.0f / total; // a part may have no key that the row sees
    int thread = threadIdx.x % 4;
    size_t part = ((size_t)blockIdx.y * rt.kv_heads + block.head) * block.rows + row;
    float* split = rt.splits + part * (D + 2);
    size_t at = (size_t)(row / rt.group) * out.cols + (block.head * rt.group + row % rt.group) * D;
#pragma unroll
    for (int c = 0; c < D / 8; c++) {
        float x = state.sums[t][c][half * 2] * factor, y = state.sums[t][c][half * 2 + 1] * factor;
        int col = c * 8 + thread * 2;
        if (gridDim.y > 1) {
            *(float2*)(split + col) = make_float2(x, y);
        } else if (out.is_bf16) {
            *(unsigned*)((bf16*)out.data + at + col) = pack(x, y);
        } else {
            *(float2*)((float*)out.data + at + col) = make_float2(x, y);
        }
    }
    if (gridDim.y > 1 && thread == 0) {
        split[D] = total == 0.0f ? -INFINITY : state.offset[t][half] + log2f(total);
    }
}

// The rows of a block: longest first, so that no block ends long after the others; heads beside one another.
__device__ __forceinline__ Block block_of(const Runtime& rt, int first, int n, int chunk) {
    Block block;
    block.rows = n * rt.group;
    int blocks = (block.rows + ROWS - 1) / ROWS;
    block.head = blockIdx.x % rt.kv_heads;
    block.first_row = (blocks - 1 - blockIdx.x / rt.kv_heads) * ROWS;
    block.begin = blockIdx.y * chunk;
    int sees = first + (min(block.first_row + ROWS, block.rows) - 1) / rt.group + 1;
    block.end = min(sees, block.begin + chunk);
    return block;
}

// Where the step from `key` on is in shared memory, which holds queries [128][D], then two times a step's keys [64][D]
// and values [64][D].
template <int D>
__device__ __forceinline__ unsigned slot_of(unsigned base, int key) {
    return base + ROWS * PITCH<D> + key / KEYS % 2 * (2 * STEP_BYTES<D>);
}

template <int D>
__device__ __forceinline__ void prefill_attend(const Runtime& rt, const bf16* staging, int capacity, int first, int n,
                                               int chunk, const View& q, const View& out) {
    extern __shared__ __align__(1024) unsigned char shared[];
    const Block block = block_of(rt, first, n, chunk);
    const int warp_row = block.first_row + threadIdx.x / 32 * WARP_ROWS, lane = threadIdx.x % 32;
    const unsigned base = (unsigned)__cvta_generic_to_shared(shared);
    const bf16* keys = staging + ((size_t)block.head * 2 * capacity + block.begin) * D;
    const size_t values = (size_t)capacity * D;
    State<D> state;
#pragma unroll
    for (int t = 0; t < TILES; t++) {
        state.offset[t][0] = state.offset[t][1] = LOWEST;
        state.total[t][0] = state.total[t][1] = 0.0f;
#pragma unroll
        for (int c = 0; c < D / 8; c++) {
#pragma unroll
            for (int e = 0; e < 4; e++) {
                state.sums[t][c][e] = 0.0f;
            }
        }
    }
    // ldmatrix brings four 8 x 8 matrices: of queries and values upper and lower left, then upper and lower right; of
    // keys, which are columns of their operand, upper left and right, then lower left and right.
    const unsigned by_columns = reader<D>(lane % 16, lane / 16);
    const unsigned by_rows = reader<D>(lane % 8 + lane / 16 * 8, lane / 8 % 2);
    const unsigned queries = base + (warp_row - block.first_row) * PITCH<D> + by_columns;
    if (block.begin < block.end) {
        bring_queries<D>(rt, shared, block, q);
        unsigned to = slot_of<D>(base, block.begin);
        bring<D>(to, keys, block.end - block.begin);
        bring<D>(to + STEP_BYTES<D>, keys + values, block.end - block.begin);
    }
    for (int key = block.begin; key < block.end; key += KEYS) {
        copies_wait();
        __syncthreads(); // and no warp reads the other slot any more
        Logits logits;
        score<D>(logits, queries, slot_of<D>(base, key) + by_rows);
        if (key + KEYS > block.end - ROWS) { // before that, every row of a block sees every key
            hide(logits, warp_row + lane / 4, rt.group, first, key + lane % 4 * 2);
        }
        raise_offsets<D>(logits, state);
        keys += KEYS * D;
        if (key + KEYS < block.end) { // not sooner: here few registers are in use
            unsigned to = slot_of<D>(base, key + KEYS);
            bring<D>(to, keys, block.end - key - KEYS);
            bring<D>(to + STEP_BYTES<D>, keys + values, block.end - key - KEYS);
        }
        add_values<D>(state, logits, slot_of<D>(base, key) + STEP_BYTES<D> + by_columns);
    }
#pragma unroll
    for (int t = 0; t < TILES; t++) {
        put<D>(rt, block, out, state, t, 0, warp_row + t * 16 + lane / 4);
        put<D>(rt, block, out, state, t, 1, warp_row + t * 16 + 8 + lane / 4);
    }
}

} // namespace

#define PREFILL_ATTEND(D)                                                                                              \
    extern "C" __global__ void __launch_bounds__(THREADS, 2)                                                           \
        prefill_attend_##D(const __grid_constant__ Runtime rt, const bf16* staging, int capacity, int first, int n,    \
                           int chunk, const __grid_constant__ View q, const __grid_constant__ View out) {              \
        prefill_attend<D>(rt, staging, capacity, first, n, chunk, q, out);                                             \
    }

PREFILL_ATTEND(64)
PREFILL_ATTEND(96)
PREFILL_ATTEND(128)

// Joins the parts that keys were cut into, ascending: grid [rows, kv_heads], a thread an element. Few rows: launches
// that have enough blocks without are not cut.
extern "C" __global__ void prefill_attend_merge(const __grid_constant__ Runtime rt, int n, int parts,
                                                const __grid_constant__ View out) {
    const int d = rt.head_dim, rows = n * rt.group, row = blockIdx.x, head = blockIdx.y;
    const size_t stride = (size_t)rt.kv_heads * rows * (d + 2);
    const float* first = rt.splits + ((size_t)head * rows + row) * (d + 2);
    float largest = -INFINITY, total = 0.0f, sum = 0.0f;
    for (int part = 0; part < parts; part++) {
        largest = fmaxf(largest, first[part * stride + d]);
    }
    for (int part = 0; part < parts; part++) {
        float weight = exp2_fast(first[part * stride + d] - largest);
        total += weight;
        sum += weight * first[part * stride + threadIdx.x];
    }
    store(out, row / rt.group, (head * rt.group + row % rt.group) * d + threadIdx.x, sum / total);
}
