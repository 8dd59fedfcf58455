// Products of few rows: bound by the bytes of the weight, which pass once.
//
// out[m][n] = sum_k x[m][k] w[n][k] (+ bias[n]), by mma.m16n8k16: 16 weight rows are its rows, 8 rows of x its columns.
// The order along k is free as long as both operands agree, so each thread takes 16 bytes in a row of a weight row: of
// a block of 32 k, thread t of four has k = 8t..8t + 8, the first four of them for one mma, the others for the next.
//
// Weight rows are `stride` elements apart, a multiple of 64, with zeros behind their ends, and there is a multiple of
// 16 of them; rows of x are a multiple of 8 elements wide. Estimate: 2 N K bytes over the copy bandwidth;
// Llama-3.1-8B: 15.0 GB a step, 5.0 ms on an H100.
#include "runtime.cuh"

constexpr int WARPS = 8;
constexpr int CHUNK = 64;  // k that a warp takes at once: 128 bytes of a row
constexpr int AHEAD = 4;   // chunks that are asked for before the first is used

__device__ __forceinline__ uint4 load_weight(const bf16* at) {
    uint4 v;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(at));
    return v;
}

__device__ __forceinline__ void mma(float (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0,
                                    unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Eight elements from `at` on as bf16.
__device__ __forceinline__ uint4 load_x(const bf16* at) { return *(const uint4*)at; }

__device__ __forceinline__ uint4 load_x(const float* at) {
    float4 low = ((const float4*)at)[0], high = ((const float4*)at)[1];
    __nv_bfloat162 pairs[4] = {__floats2bfloat162_rn(low.x, low.y), __floats2bfloat162_rn(low.z, low.w),
                               __floats2bfloat162_rn(high.x, high.y), __floats2bfloat162_rn(high.z, high.w)};
    return *(uint4*)pairs;
}

// Grid (N / 16), 256 threads: 16 outputs of up to 8 rows. The warps take chunks of k in turn and add up in shared
// memory, in order: [WARPS][16][8] floats.
template <class X>
__device__ __forceinline__ void gemm_few(const X* x, int cols, int rows, const bf16* weight, int stride, int outputs,
                                         const float* bias, const View& out) {
    __shared__ float sums[WARPS][16][9];
    int warp = threadIdx.x / 32, g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
    const bf16* top = weight + ((size_t)blockIdx.x * 16 + g) * stride + 8 * t;
    const bf16* bottom = top + (size_t)8 * stride;
    float c[4] = {};
    int chunks = stride / CHUNK;
    let_successor_start();
    bool waited = false;
    for (int first = warp; first < chunks; first += WARPS * AHEAD) {
        uint4 w[AHEAD][4];
#pragma unroll
        for (int n = 0; n < AHEAD; n++) {
            int k = (first + n * WARPS) * CHUNK;
            if (first + n * WARPS < chunks) {
                w[n][0] = load_weight(top + k);
                w[n][1] = load_weight(bottom + k);
                w[n][2] = load_weight(top + k + 32);
                w[n][3] = load_weight(bottom + k + 32);
            }
        }
        if (!waited) {
            // Weights are nobody's result: the first of them are asked for while the kernel before still runs.
            wait_for_predecessor();
            waited = true;
        }
#pragma unroll
        for (int n = 0; n < AHEAD; n++) {
            if (first + n * WARPS >= chunks) {
                break;
            }
#pragma unroll
            for (int half = 0; half < 2; half++) {
                int k = (first + n * WARPS) * CHUNK + 32 * half + 8 * t;
                uint4 a = w[n][2 * half], b = w[n][2 * half + 1];
                uint4 v = g < rows && k < cols ? load_x(x + (size_t)g * cols + k) : make_uint4(0, 0, 0, 0);
                mma(c, a.x, b.x, a.y, b.y, v.x, v.y);
                mma(c, a.z, b.z, a.w, b.w, v.z, v.w);
            }
        }
    }
    if (!waited) {
        wait_for_predecessor();
    }
    sums[warp][g][2 * t] = c[0];
    sums[warp][g][2 * t + 1] = c[1];
    sums[warp][g + 8][2 * t] = c[2];
    sums[warp][g + 8][2 * t + 1] = c[3];
    __syncthreads();
    int row = threadIdx.x / 16, output = threadIdx.x % 16, column = blockIdx.x * 16 + output;
    if (row < rows && column < outputs) {
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < WARPS; w++) {
            sum += sums[w][output][row];
        }
        store(out, row, column, bias ? sum + bias[column] : sum);
    }
}

extern "C" __global__ void __launch_bounds__(256, 2)
    gemm_few_bf16(const bf16* x, int cols, int rows, const bf16* weight, int stride, int outputs, const float* bias,
                  const __grid_constant__ View out) {
    gemm_few(x, cols, rows, weight, stride, outputs, bias, out);
}

extern "C" __global__ void __launch_bounds__(256, 2)
    gemm_few_f32(const float* x, int cols, int rows, const bf16* weight, int stride, int outputs, const float* bias,
                 const __grid_constant__ View out) {
    gemm_few(x, cols, rows, weight, stride, outputs, bias, out);
}
