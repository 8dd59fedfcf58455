// Approximate attention over unselected candidates, from mean keys and value sums or from 2-bit value codes: truth,
// with the formulas, is backend/src/cpu/estimate.rs and its modules. Where this departs from it:
// - Items of the schedule INDEXED take the place of splits.
// - Weights are e^(x - M) with M the largest page score of an item: of codes that is a page's log-sum-exp, so an item's
//   weights add up to at least 1.
// - Skipped are the pages (of codes, the groups of 48 tokens) that count for at most 2^-25 of the item's largest page
//   each, for every query head: up to 4,096 pages move an output by less than 2^-13 of the values' spread.
// - Weights a = p dev are rounded to f16 (11 bits, where the CPU has 8 for the largest of a group); codes are exact.
//   Tensor cores cut off what they add: sums are low by up to n 2^-24 of themselves, n at most 3/4 of an item's groups.
#include "estimate_codes.cuh"
#include "estimate_vectors.cuh"

// Both: `_4` for groups of up to 4 query heads, `_8` up to 8. Blocks of 128 threads; grid: any, best one block for each
// item and KV head. Static shared memory, 19 to 26 KiB.
//
// estimate_codes reads 4 bytes a page and query head twice (the second time from L2) and, of a group of 48 tokens that
// is not skipped, 96 a query head and 12 d + 192: 20 lanes of 55,000 tokens, 32 query and 8 KV heads, d 128: 18 MB and
// up to 387 MB.
// `beside`: the kernel before it is `retrieve`, which still runs, and has nothing that is read here.
#define ESTIMATE(D, SLOTS)                                                                                             \
    extern "C" __global__ void __launch_bounds__(128, 4)                                                               \
        estimate_codes_##D##_##SLOTS(const __grid_constant__ Runtime rt, int algorithm, int layer, int beside,         \
                                     const float* rotation, Partial out) {                                             \
        estimate_codes<D, SLOTS>(rt, algorithm, layer, beside, rotation, out);                                         \
        end_beside(beside);                                                                                            \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(128, SLOTS == 4 ? 4 : 3)                                              \
        estimate_vectors_##D##_##SLOTS(const __grid_constant__ Runtime rt, int algorithm, int layer, int beside,       \
                                       Partial out) {                                                                  \
        estimate_vectors<D, SLOTS>(rt, algorithm, layer, beside, out);                                                 \
        end_beside(beside);                                                                                            \
    }
ESTIMATE(64, 4)
ESTIMATE(64, 8)
ESTIMATE(96, 4)
ESTIMATE(96, 8)
ESTIMATE(128, 4)
ESTIMATE(128, 8)
