// Instructions of compute capability 9.0 alone (sm_90a): products by a warpgroup, copies of tiles by the tensor memory
// accelerator, and the barriers in shared memory that both complete on.
#pragma once

#include "instructions.cuh"

// CUtensorMap: what the accelerator is told of an array.
struct alignas(128) TensorMap {
    unsigned long long words[16];
};

// ---- barriers in shared memory; a phase ends when all arrivals and announced bytes are there

__device__ __forceinline__ void barrier_init(unsigned barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals) : "memory");
}

// Makes barriers visible to the accelerator.
__device__ __forceinline__ void barriers_ready() {
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void arrive(unsigned barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

__device__ __forceinline__ void arrive_and_expect(unsigned barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

// Until the phase of this parity has ended; before the first phase, the one of parity 1 counts as ended.
__device__ __forceinline__ void wait_for(unsigned barrier, int parity) {
    asm volatile("{\n"
                 ".reg .pred done;\n"
                 "again:\n"
                 "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
                 "@!done bra again;\n"
                 "}" ::"r"(barrier),
                 "r"(parity)
                 : "memory");
}

// ---- registers

template <int N>
__device__ __forceinline__ void take_registers() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}

template <int N>
__device__ __forceinline__ void give_registers() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}

// ---- copies

// What this thread stored to shared memory may be read by products.
__device__ __forceinline__ void stores_ready() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

__device__ __forceinline__ void map_soon(const TensorMap& map) {
    asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// A tile of an array of four dimensions, zeros where it reaches beyond; `barrier` counts its bytes.
__device__ __forceinline__ void copy_tile(unsigned target, const TensorMap& map, int x, int y, int z, int w,
                                          unsigned barrier) {
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], "
                 "[%1, {%2, %3, %4, %5}], [%6];" ::"r"(target),
                 "l"(&map), "r"(x), "r"(y), "r"(z), "r"(w), "r"(barrier)
                 : "memory");
}

// ---- products. Operands in shared memory are tiles of rows of 128 bytes whose pieces of 16 are exchanged by the row's
// number modulo 8, 1024 bytes for 8 rows.

// Such an operand from `address` on; `columns` is what lies between its columns 64 * i and the next 64, in bytes, where
// they are the product's and not summed over.
__device__ __forceinline__ unsigned long long operand(unsigned address, int columns) {
    constexpr unsigned long long EXCHANGED = 1ull << 62, EIGHT_ROWS = 1024ull >> 4 << 32;
    return EXCHANGED | EIGHT_ROWS | (unsigned long long)(columns >> 4) << 16 | (address & 0x3ffff) >> 4;
}

// The operand `bytes` further on.
__device__ __forceinline__ unsigned long long further(unsigned long long operand, int bytes) {
    return operand + (bytes >> 4);
}

// Before products that read or add to registers which were written otherwise.
__device__ __forceinline__ void products_begin() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void products_end() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

#define FOUR(c) "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
#define SIXTEEN(c, i) FOUR(c[i]), FOUR(c[i + 1]), FOUR(c[i + 2]), FOUR(c[i + 3])
#define THIRTY_TWO(c, i) SIXTEEN(c, i), SIXTEEN(c, i + 4)
#define NAMES_32                                                                                                       \
    "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, %22, %23, "  \
    "%24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_64                                                                                                       \
    NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, "  \
             "%52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"

// Until all but the last `LEFT` groups of products have ended. Sums must not be read sooner: they pass through.
template <int LEFT>
__device__ __forceinline__ void products_wait(float (&c)[16][4]) {
    asm volatile("wgmma.wait_group.sync.aligned %64;" : THIRTY_TWO(c, 0), THIRTY_TWO(c, 8) : "n"(LEFT) : "memory");
}

template <int LEFT>
__device__ __forceinline__ void products_wait(float (&c)[8][4]) {
    asm volatile("wgmma.wait_group.sync.aligned %32;" : THIRTY_TWO(c, 0) : "n"(LEFT) : "memory");
}

// What is made of these is made behind everything that was asked for before.
__device__ __forceinline__ void not_sooner(float (&c)[16][4]) {
    asm volatile("" : THIRTY_TWO(c, 0), THIRTY_TWO(c, 8)::"memory");
}

// c [64][128] (+)= a [64][16] b [128][16] transposed, both in shared memory.
template <bool ADDS>
__device__ __forceinline__ void multiply(float (&c)[16][4], unsigned long long a, unsigned long long b) {
    asm volatile("{\n.reg .pred adds;\nsetp.ne.b32 adds, %66, 0;\n"
                 "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " NAMES_64 "}, %64, %65, adds, 1, 1, 0, 0;\n}"
                 : THIRTY_TWO(c, 0), THIRTY_TWO(c, 8)
                 : "l"(a), "l"(b), "n"(ADDS));
}

// c [64][128] += a [64][16] b [16][128], b in shared memory.
__device__ __forceinline__ void multiply(float (&c)[16][4], const unsigned (&a)[4], unsigned long long b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " NAMES_64
                 "}, {%64, %65, %66, %67}, %68, 1, 1, 1, 1;"
                 : THIRTY_TWO(c, 0), THIRTY_TWO(c, 8)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

// c [64][64] += a [64][16] b [16][64], b in shared memory.
__device__ __forceinline__ void multiply(float (&c)[8][4], const unsigned (&a)[4], unsigned long long b) {
    asm volatile("wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 " NAMES_32
                 "}, {%32, %33, %34, %35}, %36, 1, 1, 1, 1;"
                 : THIRTY_TWO(c, 0)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#undef FOUR
#undef SIXTEEN
#undef THIRTY_TWO
#undef NAMES_32
#undef NAMES_64
