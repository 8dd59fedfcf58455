// What rows of logits say of the tokens that came.
#include "logits.cuh"

// A record in pinned memory: top tokens [top], their log-probabilities [top] follow.
struct Score {
    int token;
    float logprob;
    int rank, top_count;
};

// Grid (16 parts, rows), 512 threads. Records are `16 + 8 * top` bytes each.
// Bytes: the logits once, 33 MB for 64 rows of 128K tokens: 11 us at 3 TB/s. Shared memory: 5 KiB.
extern "C" __global__ void __launch_bounds__(SCAN_THREADS)
    score_tokens(const __grid_constant__ Runtime rt, const __grid_constant__ View logits, const int* targets, int top,
                 char* records) {
    int row = blockIdx.y, target = targets[row];
    Head& head = head_of(rt, row);
    const float* own = (const float*)logits.data + (size_t)row * rt.vocab;
    Source source = Source::plain(own);
    Tokens tokens(rt.vocab, blockIdx.x);
    scan<true>(source, nullptr, tokens, top, target, head.parts[blockIdx.x]);
    if (!is_last(head)) {
        return;
    }
    float log_sum = log_sum_of(head);
    Score* record = (Score*)(records + (size_t)row * (sizeof(Score) + 8 * top));
    int* top_tokens = (int*)(record + 1);
    if (top > 0) {
        join_top(head, top, log_sum, top_tokens, (float*)(top_tokens + top));
    }
    if (threadIdx.x < 32) {
        int ahead = threadIdx.x < PARTS ? __ldcg(&head.parts[threadIdx.x].ahead) : 0;
        ahead = __reduce_add_sync(FULL, ahead);
        if (threadIdx.x == 0) {
            *record = {target, own[target] - log_sum, ahead + 1, top};
        }
    }
}
