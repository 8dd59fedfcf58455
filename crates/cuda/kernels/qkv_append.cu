// Head norms, rotary embedding, K and V to their place.
#include "runtime.cuh"

// Grid (positions), d / 2 threads: cosines and sines of a position, angles in double as on the CPU.
extern "C" __global__ void make_rope(const __grid_constant__ Runtime rt, const double* inv_freq, float factor) {
    int half = rt.head_dim / 2, i = threadIdx.x;
    double sine, cosine;
    sincos((double)blockIdx.x * inv_freq[i], &sine, &cosine);
    float* row = rt.rope + (size_t)blockIdx.x * rt.head_dim;
    row[i] = (float)(cosine * (double)factor);
    row[half + i] = (float)(sine * (double)factor);
}

// Where K and V go: staging (then `staging` is set: [kv_heads][2][capacity][d], token i to position first + i), or each
// active lane's row of its last position.
struct Target {
    bf16* staging;
    int capacity;
    int first;
};

// Two neighbours of a row.
__device__ __forceinline__ float2 load2(const View& v, size_t row, int col) {
    size_t at = row * v.cols + col;
    return v.is_bf16 ? __bfloat1622float2(*(const __nv_bfloat162*)((const bf16*)v.data + at))
                     : *(const float2*)((const float*)v.data + at);
}

__device__ __forceinline__ void store2(const View& v, size_t row, int col, float2 x) {
    size_t at = row * v.cols + col;
    if (v.is_bf16) {
        *(__nv_bfloat162*)((bf16*)v.data + at) = __float22bfloat162_rn(x);
    } else {
        *(float2*)((float*)v.data + at) = x;
    }
}

// Grid (rows, blocks of heads), 32 threads a head, `blockDim.x / 32` heads a block: q, k and v of a row
// [q_heads | kv_heads | kv_heads][d]. Thread t has elements 2t, 2t + 1 of both halves. Reads and writes each element
// once: 4096 tokens of 32 + 16 heads of 128, 101 MB, 34 us at 3 TB/s.
extern "C" __global__ void qkv_append(const __grid_constant__ Runtime rt, int layer, const __grid_constant__ View qkv,
                                      const float* q_norm, const float* k_norm, float eps,
                                      const __grid_constant__ Target target, const __grid_constant__ View q) {
    let_successor_start();
    wait_for_predecessor();
    int i = blockIdx.x, head = blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32, c = 2 * (threadIdx.x % 32);
    int d = rt.head_dim, half = d / 2;
    if (head >= rt.q_heads + 2 * rt.kv_heads || (!target.staging && i >= *rt.n_active)) {
        return;
    }
    int lane = target.staging ? 0 : rt.active[i];
    int position = target.staging ? target.first + i : rt.lanes[lane].len - 1;
    bool is_query = head < rt.q_heads, is_value = head >= rt.q_heads + rt.kv_heads, mine = c < half;
    float2 a = make_float2(0.0f, 0.0f), b = a;
    if (mine) {
        a = load2(qkv, i, head * d + c);
        b = load2(qkv, i, head * d + half + c);
    }
    const float* norm = is_query ? q_norm : k_norm;
    if (norm && !is_value) {
        float scale = rsqrtf(warp_sum(a.x * a.x + a.y * a.y + b.x * b.x + b.y * b.y) / d + eps);
        if (mine) {
            a = make_float2(a.x * scale * norm[c], a.y * scale * norm[c + 1]);
            b = make_float2(b.x * scale * norm[half + c], b.y * scale * norm[half + c + 1]);
        }
    }
    if (!mine) {
        return;
    }
    if (!is_value) {
        const float* angles = rt.rope + (size_t)position * d;
        float2 cosine = *(const float2*)(angles + c), sine = *(const float2*)(angles + half + c), x = a, y = b;
        a = make_float2(x.x * cosine.x - y.x * sine.x, x.y * cosine.y - y.y * sine.y);
        b = make_float2(y.x * cosine.x + x.x * sine.x, y.y * cosine.y + x.y * sine.y);
    }
    if (is_query) {
        store2(q, i, head * d + c, a);
        store2(q, i, head * d + half + c, b);
        return;
    }
    int kv_head = (head - rt.q_heads) % rt.kv_heads;
    bf16* out;
    if (target.staging) {
        out = target.staging + ((size_t)(2 * kv_head + is_value) * target.capacity + position) * d;
    } else {
        unsigned row = rt.kv_rows[(size_t)lane * rt.max_pages + position / PAGE_TOKENS];
        out = frame(rt, row, layer, kv_head) + (is_value * PAGE_TOKENS + position % PAGE_TOKENS) * d;
    }
    *(__nv_bfloat162*)(out + c) = __float22bfloat162_rn(a);
    *(__nv_bfloat162*)(out + half + c) = __float22bfloat162_rn(b);
}
