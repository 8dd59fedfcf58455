// embed, add_norm, silu_mul, conversions: bound by memory (prefill) or by latency (decode).
#include "runtime.cuh"

// Four elements of a row from `col` on, a multiple of 4; rows are 8 or 16 bytes aligned there.
__device__ __forceinline__ float4 load4(const View& v, size_t row, int col) {
    size_t at = row * v.cols + col;
    if (!v.is_bf16) {
        return *(const float4*)((const float*)v.data + at);
    }
    uint2 bits = *(const uint2*)((const bf16*)v.data + at);
    float2 low = __bfloat1622float2(*(const __nv_bfloat162*)&bits.x);
    float2 high = __bfloat1622float2(*(const __nv_bfloat162*)&bits.y);
    return make_float4(low.x, low.y, high.x, high.y);
}

__device__ __forceinline__ void store4(const View& v, size_t row, int col, float4 x) {
    size_t at = row * v.cols + col;
    if (!v.is_bf16) {
        *(float4*)((float*)v.data + at) = x;
        return;
    }
    __nv_bfloat162 low = __floats2bfloat162_rn(x.x, x.y), high = __floats2bfloat162_rn(x.z, x.w);
    *(uint2*)((bf16*)v.data + at) = make_uint2(*(unsigned*)&low, *(unsigned*)&high);
}

// Grid (rows): out[i] = table[token]. Tokens are given, or (null) those of the active lanes. Table rows are `stride`
// elements apart, a multiple of 64; 6 bytes an element.
extern "C" __global__ void embed(const __grid_constant__ Runtime rt, const int* tokens, const bf16* table, int stride,
                                 const __grid_constant__ View out) {
    let_successor_start();
    wait_for_predecessor();
    int i = blockIdx.x;
    if (!tokens && i >= *rt.n_active) {
        return;
    }
    int token = tokens ? tokens[i] : rt.lanes[rt.active[i]].token;
    View row = {(void*)(table + (size_t)token * stride), stride, 1};
    if (out.cols % 4 == 0) {
        for (int c = 4 * threadIdx.x; c < out.cols; c += 4 * blockDim.x) {
            store4(out, i, c, load4(row, 0, c));
        }
        return;
    }
    for (int c = threadIdx.x; c < out.cols; c += blockDim.x) {
        store(out, i, c, load(row, 0, c));
    }
}

__device__ __forceinline__ float block_sum(float x) {
    __shared__ float sums[32];
    x = warp_sum(x);
    if (threadIdx.x % 32 == 0) {
        sums[threadIdx.x / 32] = x;
    }
    __syncthreads();
    x = threadIdx.x % 32 < blockDim.x / 32 ? sums[threadIdx.x % 32] : 0.0f;
    return warp_sum(x);
}

// Elements that a thread keeps in registers between the two passes over a row.
constexpr int KEPT = 4;

// Grid (rows), whole warps: x += delta, then out = x / rms(x) * norm. One read of x and delta, one write of x and out:
// 20 bytes an element where x is f32 and the others bf16... floor at hidden 4096 x 4096 tokens: 60 us at 3 TB/s.
// Wide rows (a multiple of 4 elements) go by vectors.
extern "C" __global__ void add_norm(const __grid_constant__ View x, const __grid_constant__ View delta,
                                    const float* norm, float eps, const __grid_constant__ View out) {
    let_successor_start();
    wait_for_predecessor();
    size_t row = blockIdx.x;
    int vectors = x.cols / 4, step = blockDim.x;
    float4 kept[KEPT];
    float sum = 0.0f;
#pragma unroll
    for (int n = 0; n < KEPT; n++) {
        int at = threadIdx.x + n * step;
        if (at < vectors) {
            float4 v = load4(x, row, 4 * at);
            if (delta.data) {
                float4 d = load4(delta, row, 4 * at);
                v = make_float4(v.x + d.x, v.y + d.y, v.z + d.z, v.w + d.w);
                store4(x, row, 4 * at, v);
            }
            kept[n] = v;
            sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
        }
    }
    float scale = rsqrtf(block_sum(sum) / x.cols + eps);
#pragma unroll
    for (int n = 0; n < KEPT; n++) {
        int at = threadIdx.x + n * step;
        if (at < vectors) {
            float4 v = kept[n], w = *(const float4*)(norm + 4 * at);
            v = make_float4(v.x * scale * w.x, v.y * scale * w.y, v.z * scale * w.z, v.w * scale * w.w);
            store4(out, row, 4 * at, v);
        }
    }
}

// The same for rows of any width.
extern "C" __global__ void add_norm_any(const __grid_constant__ View x, const __grid_constant__ View delta,
                                        const float* norm, float eps, const __grid_constant__ View out) {
    let_successor_start();
    wait_for_predecessor();
    size_t row = blockIdx.x;
    float sum = 0.0f;
    for (int c = threadIdx.x; c < x.cols; c += blockDim.x) {
        float v = load(x, row, c);
        if (delta.data) {
            v += load(delta, row, c);
            store(x, row, c, v);
        }
        sum += v * v;
    }
    float scale = rsqrtf(block_sum(sum) / x.cols + eps);
    for (int c = threadIdx.x; c < x.cols; c += blockDim.x) {
        store(out, row, c, load(x, row, c) * scale * norm[c]);
    }
}

__device__ __forceinline__ float silu(float x) { return x / (1.0f + __expf(-x)); }

// Grid (blocks, rows): out = silu(gate) * up of [gate | up], four elements a thread: 6 bytes an element in bf16.
extern "C" __global__ void silu_mul(const __grid_constant__ View gate_up, const __grid_constant__ View out) {
    let_successor_start();
    wait_for_predecessor();
    int at = 4 * (blockIdx.x * blockDim.x + threadIdx.x);
    size_t row = blockIdx.y;
    if (at < out.cols) {
        float4 g = load4(gate_up, row, at), u = load4(gate_up, row, out.cols + at);
        store4(out, row, at, make_float4(silu(g.x) * u.x, silu(g.y) * u.y, silu(g.z) * u.z, silu(g.w) * u.w));
    }
}

// The same for rows of any width.
extern "C" __global__ void silu_mul_any(const __grid_constant__ View gate_up, const __grid_constant__ View out) {
    let_successor_start();
    wait_for_predecessor();
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    size_t row = blockIdx.y;
    if (at < out.cols) {
        store(out, row, at, silu(load(gate_up, row, at)) * load(gate_up, row, out.cols + at));
    }
}

// Grid (blocks, rows): to bf16 for cuBLASLt; rows of `out` are `stride` wide, zeros behind their ends.
extern "C" __global__ void to_bf16(const __grid_constant__ View x, bf16* out, int stride) {
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at < stride) {
        float value = at < x.cols ? load(x, blockIdx.y, at) : 0.0f;
        out[(size_t)blockIdx.y * stride + at] = __float2bfloat16_rn(value);
    }
}

// Grid (blocks, rows): out += bias, for products of which cuBLASLt adds none.
extern "C" __global__ void add_bias(const __grid_constant__ View out, const float* bias) {
    int at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at < out.cols) {
        store(out, blockIdx.y, at, load(out, blockIdx.y, at) + bias[at]);
    }
}

// Grid (blocks): noise of a weight, element i a function of (seed, i): backend/src/cpu/random.rs.
extern "C" __global__ void random_weight(bf16* out, unsigned long long count, int inputs, unsigned long long seed) {
    float scale = sqrtf(3.0f / inputs);
    for (unsigned long long i = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; i < count;
         i += (unsigned long long)gridDim.x * blockDim.x) {
        unsigned x = (unsigned)(seed ^ i * 0x9e3779b97f4a7c15ull) ^ (unsigned)((seed ^ i) >> 32);
        x = (x ^ x >> 16) * 0x85ebca6bu;
        x = (x ^ x >> 13) * 0xc2b2ae35u;
        x ^= x >> 16;
        out[i] = __float2bfloat16_rn(((float)x / 2147483648.0f - 1.0f) * scale);
    }
}
