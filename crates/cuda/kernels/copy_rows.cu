// Whole rows, between the pool and host memory and inside each.
#include "residency.cuh"

// Copies rows: `pairs` [count][source, target], places of either kind in any mixture. Sources may repeat; no target is
// a source or another target, so that the order does not matter. A warp takes 4 KiB at a time, in turn, so that the
// smallest list occupies the whole grid.
// Grid: any, 512 threads; 8 blocks saturate the link, copies inside the pool want one or two for each multiprocessor.
// Bytes: a row (1 MiB at 32 layers x 8 heads x 4 KiB) once over the link, at 51 GB/s 21 us; inside the pool it is read
// and written at the speed of a copy.
extern "C" __global__ void __launch_bounds__(512)
    copy_rows(const __grid_constant__ Runtime rt, const unsigned* pairs, int count) {
    int thread = threadIdx.x % 32, warps = gridDim.x * (blockDim.x / 32);
    int row_pieces = rt.layers * rt.kv_heads * frame_pieces(rt);
    unsigned parts = (row_pieces + PIECES_MOST - 1) / PIECES_MOST;
    for (unsigned n = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32; n < count * parts; n += warps) {
        unsigned copy = n / parts, first = n % parts * PIECES_MOST;
        const char* source = (const char*)row_at(rt, pairs[2 * copy]) + first * PIECE;
        char* target = (char*)row_at(rt, pairs[2 * copy + 1]) + first * PIECE;
        copy_pieces(source, target, min(row_pieces - (int)first, PIECES_MOST), thread);
    }
}
