// Partials of attention joined by log-sum-exp.
#include "runtime.cuh"

constexpr int MERGE_WARPS = 4;

// into = into (+) other for each query head of the algorithm's lanes; an empty side (log-sum-exp -inf) returns the
// other bit for bit. Grid: (rows, q_heads / 4 rounded up), 128 threads, one warp a head. No shared memory.
// Bytes: three outputs [d] a head, 48 KiB a lane at 32 heads of 128: its time is that of two reads in a row.
extern "C" __global__ void __launch_bounds__(MERGE_WARPS * 32)
    merge(const __grid_constant__ Runtime rt, int algorithm, const __grid_constant__ Partial into,
          const __grid_constant__ Partial other) {
    int i = blockIdx.x, head = blockIdx.y * MERGE_WARPS + threadIdx.x / 32, thread = threadIdx.x % 32;
    if (rt.q_heads <= head) {
        return;
    }
    let_successor_start();
    wait_for_predecessor();
    // Read before it is known whether the row is the algorithm's: reads in a row are what takes time.
    size_t at = (size_t)i * rt.q_heads + head;
    bool has = thread * 4 < rt.head_dim;
    float4 zero = make_float4(0, 0, 0, 0);
    float4* to = (float4*)(into.output + at * rt.head_dim) + thread;
    float4 x = has ? *to : zero, y = has ? ((const float4*)(other.output + at * rt.head_dim))[thread] : zero;
    float x_lse = into.lse[at], y_lse = other.lse[at];
    if (*rt.n_active <= i || rt.lanes[rt.active[i]].algorithm != algorithm || y_lse == -INFINITY) {
        return;
    }
    __syncwarp();
    if (x_lse == -INFINITY) {
        x = y;
        x_lse = y_lse;
    } else {
        float largest = fmaxf(x_lse, y_lse);
        float a = expf(x_lse - largest), b = expf(y_lse - largest);
        float sum = a + b;
        a /= sum, b /= sum;
        x.x = x.x * a + y.x * b;
        x.y = x.y * a + y.y * b;
        x.z = x.z * a + y.z * b;
        x.w = x.w * a + y.w * b;
        x_lse = largest + logf(sum);
    }
    if (has) {
        *to = x;
    }
    if (thread == 0) {
        into.lse[at] = x_lse;
    }
}
