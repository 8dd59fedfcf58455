// Sums over a block's threads, and where a histogram's running sum reaches a goal.
#pragma once

#include "runtime.cuh"

constexpr int BINS = 2048; // of a histogram: 11 bits of a key

// Sum of `x` over the threads before this one; `total` gets the sum over all. `sums` is shared, one a warp. Every
// thread takes part, and afterwards `sums` is free again.
template <int THREADS, typename T>
__device__ __forceinline__ T sum_before(T x, T* sums, T& total) {
    int thread = threadIdx.x % 32, warp = threadIdx.x / 32;
    T sum = x;
    for (int at = 1; at < 32; at *= 2) {
        T other = __shfl_up_sync(FULL, sum, at);
        sum += thread >= at ? other : 0;
    }
    if (thread == 31) {
        sums[warp] = sum;
    }
    __syncthreads();
    T before = 0;
    total = 0;
#pragma unroll
    for (int w = 0; w < THREADS / 32; w++) {
        T other = sums[w];
        before += w < warp ? other : 0;
        total += other;
    }
    __syncthreads();
    return before + sum - x;
}

// The bin in which the running sum of a histogram [BINS] reaches a goal.
template <typename T>
struct Crossing {
    int bin;
    T before; // sum of the bins before it
    T inside; // its own
};

// Finds it for `goal` above 0; false where the whole sum stays below. The histogram, `sums` (one a warp) and `found`
// are shared; every thread takes part, after a barrier behind the histogram's last change.
template <int THREADS, typename T, typename H>
__device__ __forceinline__ bool crossing(const H& histogram, T goal, T* sums, Crossing<T>* found) {
    constexpr int OWN = BINS / THREADS;
    T own[OWN], sum = 0, total;
#pragma unroll
    for (int n = 0; n < OWN; n++) {
        own[n] = histogram[threadIdx.x * OWN + n];
        sum += own[n];
    }
    T before = sum_before<THREADS>(sum, sums, total);
#pragma unroll
    for (int n = 0; n < OWN; n++) {
        if (before < goal && goal <= before + own[n]) {
            *found = {(int)threadIdx.x * OWN + n, before, own[n]};
        }
        before += own[n];
    }
    __syncthreads();
    return goal <= total;
}
