// Head norms, rotary embedding, K and V to their place.
#include "common.cuh"

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

// Grid (rows, blocks of heads), 32 threads a head, `blockDim.x / 32` heads a block: q, k and v of a row
// [q_heads | kv_heads | kv_heads][d]. A thread has elements 2t, 2t + 1 (+ 64) of both halves. Reads and writes each
// element once.
extern "C" __global__ void qkv_append(const __grid_constant__ Runtime rt, int layer, const __grid_constant__ View qkv,
                                      const float* q_norm, const float* k_norm, float eps,
                                      const __grid_constant__ Target target, const __grid_constant__ View q) {
    let_successor_start();
    wait_for_predecessor();
    int i = blockIdx.x, head = blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32, t = threadIdx.x % 32;
    int d = rt.head_dim, half = d / 2;
    if (head >= rt.q_heads + 2 * rt.kv_heads || (!target.staging && i >= *rt.n_active)) {
        return;
    }
    int lane = target.staging ? 0 : rt.active[i];
    int position = target.staging ? target.first + i : rt.lanes[lane].len - 1;
    bool is_query = head < rt.q_heads, is_value = head >= rt.q_heads + rt.kv_heads;
    // Elements t, t + 32 of the first half and their partners in the second one.
    float a[2] = {0.0f, 0.0f}, b[2] = {0.0f, 0.0f};
#pragma unroll
    for (int n = 0; n < 2; n++) {
        int c = t + 32 * n;
        if (c < half) {
            a[n] = load(qkv, i, head * d + c);
            b[n] = load(qkv, i, head * d + half + c);
        }
    }
    const float* norm = is_query ? q_norm : k_norm;
    if (norm && !is_value) {
        float sum = warp_sum(a[0] * a[0] + a[1] * a[1] + b[0] * b[0] + b[1] * b[1]);
        float scale = rsqrtf(sum / d + eps);
#pragma unroll
        for (int n = 0; n < 2; n++) {
            int c = t + 32 * n;
            if (c < half) {
                a[n] *= scale * norm[c];
                b[n] *= scale * norm[half + c];
            }
        }
    }
    if (!is_value) {
        const float* angles = rt.rope + (size_t)position * d;
#pragma unroll
        for (int n = 0; n < 2; n++) {
            int c = t + 32 * n;
            if (c < half) {
                float cosine = angles[c], sine = angles[half + c], x = a[n], y = b[n];
                a[n] = x * cosine - y * sine;
                b[n] = y * cosine + x * sine;
            }
        }
    }
    bf16* out = nullptr;
    if (!is_query) {
        int kv_head = (head - rt.q_heads) % rt.kv_heads;
        if (target.staging) {
            out = target.staging + ((size_t)(2 * kv_head + is_value) * target.capacity + position) * d;
        } else {
            unsigned row = rt.kv_rows[(size_t)lane * rt.max_pages + position / PAGE_TOKENS];
            out = frame(rt, row, layer, kv_head) + (is_value * PAGE_TOKENS + position % PAGE_TOKENS) * d;
        }
    }
#pragma unroll
    for (int n = 0; n < 2; n++) {
        int c = t + 32 * n;
        if (c >= half) {
            continue;
        }
        if (is_query) {
            store(q, i, head * d + c, a[n]);
            store(q, i, head * d + half + c, b[n]);
        } else {
            out[c] = __float2bfloat16_rn(a[n]);
            out[half + c] = __float2bfloat16_rn(b[n]);
        }
    }
}
