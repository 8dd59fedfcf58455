// Staging to rows and back.
#include "runtime.cuh"

// Staging: [kv_heads][K or V][capacity][d].
struct Staging {
    bf16* data;
    int capacity;
};

// Grid (pages, kv_heads): tokens start..end of a layer between staging and their rows, 16 bytes a thread; `to_rows`
// says which way. `kv_rows` begins with the row of page `first_page`. Bytes: 4 d per token and head, read and written.
extern "C" __global__ void move_layer(const __grid_constant__ Runtime rt, const __grid_constant__ Staging staging,
                                      int layer, int start, int end, const unsigned* kv_rows, int to_rows) {
    int first_page = start / PAGE_TOKENS, page = first_page + blockIdx.x, head = blockIdx.y;
    int from = max(start, page * PAGE_TOKENS), to = min(end, (page + 1) * PAGE_TOKENS);
    int vectors = rt.head_dim / 8, count = (to - from) * vectors;
    bf16* in_rows = home_frame(rt, kv_rows[blockIdx.x], layer, head);
    for (int n = threadIdx.x; n < 2 * count; n += blockDim.x) {
        int is_value = n >= count, at = is_value ? n - count : n;
        int token = from + at / vectors, column = at % vectors * 8;
        bf16* staged = staging.data + ((size_t)(2 * head + is_value) * staging.capacity + token) * rt.head_dim + column;
        bf16* stored = in_rows + (is_value * PAGE_TOKENS + token % PAGE_TOKENS) * rt.head_dim + column;
        if (to_rows) {
            *(uint4*)stored = *(const uint4*)staged;
        } else {
            *(uint4*)staged = *(const uint4*)stored;
        }
    }
}
