// Pages that a layer's attention misses, from host memory into the pool.
#include "residency.cuh"

// Works off the fetches that `resolve` listed for `layer`, a warp a page; the list is empty afterwards: every block has
// read its length before it counts itself as done, and the last one to do so resets both numbers. So the next
// `resolve` must wait for this kernel's end, as it must for the list itself.
// The kernel behind it, `estimate` or `attend`, starts beside it, once all blocks are there and everything before is
// done: it waits where it needs the pages, and at the latest at its end, for those behind it to find them.
// Grid: any, 512 threads; 8 blocks saturate the link at every head_dim, and leave the others' multiprocessors alone.
// Bytes: pages over the link at 51 GB/s, 80 ns for one of 4 KiB, behind some 6 us of latency: 1,024 in 90 us, 4,096 in
// 340 us.
extern "C" __global__ void __launch_bounds__(512)
    retrieve(const __grid_constant__ Runtime rt, int layer) {
    const Residency& residency = rt.residency;
    wait_for_predecessor();
    let_successor_start();
    int warps = blockDim.x / 32, thread = threadIdx.x % 32, pieces = frame_pieces(rt);
    int count = residency.fetch_count[0];
    // Consecutive fetches go to different blocks: a short list, too, has every block's requests under way.
    for (int n = threadIdx.x / 32 * gridDim.x + blockIdx.x; n < count; n += gridDim.x * warps) {
        Fetch fetch = residency.fetches[n];
        const bf16* source = home_frame(rt, fetch.host_row | HOST, layer, fetch.head);
        copy_pieces(source, frame(rt, fetch.row, layer, fetch.head), pieces, thread);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        __threadfence();
        if (atomicAdd(&residency.fetch_count[1], 1) == (int)gridDim.x - 1) {
            residency.fetch_count[0] = 0;
            residency.fetch_count[1] = 0;
        }
    }
}
