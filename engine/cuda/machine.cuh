// What the kernels use of the machine beneath CUDA C++: matrix units, asynchronous copies, and
// conversions, each as one function. Everything else in this folder is plain C++ over these.
//
// The same kernels run on the processor, under the emulated driver of tests/gpu/emulator, which
// brings its own version of this page.

#pragma once

#ifdef UMBEL_EMULATED
#include "emulator.h"
#else

#ifdef __CUDACC_RTC__
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long long uint64_t;
typedef signed char int8_t;
typedef int int32_t;
#else
#include <cstdint>
#endif

// The shared memory whose size is given at the launch.
#define DYNAMIC_SHARED(type, name) extern __shared__ __align__(16) type name[]

// Two bfloat16, the first in the lower half; rounds to nearest, ties to even.
__device__ __forceinline__ uint32_t bf16x2_of(float low, float high) {
    uint32_t both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

// word & mask | bits, in one instruction: with both constant a compiler makes two of it.
__device__ __forceinline__ uint32_t masked_with(uint32_t word, uint32_t mask, uint32_t bits) {
    uint32_t result;
    asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(result) : "r"(word), "r"(mask), "r"(bits));
    return result;
}

// The half of `word` that is wanted, twice. Said like this it costs nothing where it is a factor of a fused
// step of both halves, which can take it from there.
__device__ __forceinline__ uint32_t low_twice(uint32_t word) {
    uint32_t both;
    asm("{ .reg .b16 low, high;\n"
        "mov.b32 {low, high}, %1;\n"
        "mov.b32 %0, {low, low}; }"
        : "=r"(both)
        : "r"(word));
    return both;
}
__device__ __forceinline__ uint32_t high_twice(uint32_t word) {
    uint32_t both;
    asm("{ .reg .b16 low, high;\n"
        "mov.b32 {low, high}, %1;\n"
        "mov.b32 %0, {high, high}; }"
        : "=r"(both)
        : "r"(word));
    return both;
}

// a * b + c in each half, with one rounding.
__device__ __forceinline__ uint32_t bf16x2_fma(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t result;
    asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(result) : "r"(a), "r"(b), "r"(c));
    return result;
}

__device__ __forceinline__ float float_of_f16(uint16_t value) {
    float result;
    asm("cvt.f32.f16 %0, %1;" : "=f"(result) : "h"(value));
    return result;
}

// Rounds to nearest, ties to even.
__device__ __forceinline__ uint16_t f16_of(float value) {
    uint16_t result;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(result) : "f"(value));
    return result;
}

// 2 to the power of `value`, to two units in the last place.
__device__ __forceinline__ float exp2_fast(float value) {
    float result;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(value));
    return result;
}

// sums += a * b for 16 rows, 8 columns and 16 values between them, by a whole warp. The lane
// 4 * g + t has of `a` the rows g and g + 8 and of `b` and `sums` the columns that PTX's
// mma.m16n8k16 says.
__device__ __forceinline__ void mma_bf16(float (&sums)[4], const uint32_t (&a)[4],
                                         const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// The sum over a warp, in every lane: of the lanes that are 16 apart, then 8, 4, 2 and 1.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int distance = 16; distance > 0; distance /= 2) {
        value = __fadd_rn(value, __shfl_xor_sync(0xffffffffu, value, distance));
    }
    return value;
}

// Waits until all that was launched before has ended and can be seen; nothing that it wrote may be
// read or overwritten earlier. Only newer devices begin a kernel before that.
__device__ __forceinline__ void grid_wait() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Says that blocks of the next kernel may begin once there is room for them.
__device__ __forceinline__ void grid_release() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Begins to copy 16 bytes to shared memory; where they are not valid, zeros come instead.
__device__ __forceinline__ void copy_async_16(void* shared, const void* global, bool valid = true) {
    const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    const uint32_t bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes)
                 : "memory");
}

__device__ __forceinline__ void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most the last `GROUPS` of this thread's groups of copies are under way.
template <int GROUPS>
__device__ __forceinline__ void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
}

#ifdef __CUDA_ARCH_FEAT_SM90_ALL

// What four warps multiply together, on devices of compute capability 9.0. The products are computed
// asynchronously, in groups; until a group is done its sums and operands are left alone.
__device__ __forceinline__ void group_mma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }

__device__ __forceinline__ void group_mma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Until all groups are done; nothing reads `sums` before.
__device__ __forceinline__ void group_mma_wait(float (&sums)[64]) {
    asm volatile("wgmma.wait_group.sync.aligned 0;" ::: "memory");
#pragma unroll
    for (int sum = 0; sum < 64; ++sum) {
        asm volatile("" : "+f"(sums[sum])::"memory");
    }
}

// A barrier in shared memory, whose phases end when so many threads have arrived, and as many bytes as
// were announced.
struct Barrier {
    uint64_t state;

    __device__ __forceinline__ uint32_t place() const {
        return static_cast<uint32_t>(__cvta_generic_to_shared(&state));
    }
    // By one thread, before the block's others see it.
    __device__ __forceinline__ void begin(uint32_t arrivals) {
        asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(place()), "r"(arrivals) : "memory");
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __device__ __forceinline__ void arrive() {
        asm volatile("mbarrier.arrive.shared.b64 _, [%0];" ::"r"(place()) : "memory");
    }
    // Where `does`, without a branch: at one, a compiler would let the products end that are under way.
    __device__ __forceinline__ void arrive_where(bool does) {
        asm volatile(
            "{ .reg .pred does;\n"
            "setp.ne.u32 does, %1, 0;\n"
            "@does mbarrier.arrive.shared.b64 _, [%0]; }" ::"r"(place()),
            "r"(static_cast<uint32_t>(does))
            : "memory");
    }
    __device__ __forceinline__ void arrive_with(uint32_t bytes) {
        asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(place()), "r"(bytes) : "memory");
    }
    // Until the phase with this parity has ended; the first has 0.
    __device__ __forceinline__ void wait(uint32_t parity) {
        asm volatile(
            "{ .reg .pred ended;\n"
            "again: mbarrier.try_wait.parity.shared.b64 ended, [%0], %1;\n"
            "@!ended bra again; }" ::"r"(place()),
            "r"(parity)
            : "memory");
    }
};

// Begins to copy to shared memory, where the matrix units see it once the phase of `barrier` has ended.
// All is in multiples of 16 bytes.
__device__ __forceinline__ void copy_bulk(void* shared, const void* global, uint32_t bytes, Barrier& barrier) {
    const uint32_t to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to),
        "l"(global), "r"(bytes), "r"(barrier.place())
        : "memory");
}

// Begins to bring bytes that are read soon into the second-level cache. All is in multiples of 16 bytes.
__device__ __forceinline__ void prefetch_bulk(const void* global, uint32_t bytes) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(global), "r"(bytes) : "memory");
}

// sums += a * b for 64 rows, 128 columns and 16 values between them. Warp w has of `a` and of the sums
// the rows from 16 w on, as in mma_bf16, and of the columns n * 8 to n * 8 + 7 the sums from 4 n on.
//
// `b` is in shared memory, in core matrices of 8 columns and 8 values, of which each column has 16
// bytes: the second 8 values 128 bytes behind the first, the next 8 columns 2048 bytes further.
__device__ __forceinline__ void group_mma_bf16(float (&sums)[64], const uint32_t (&a)[4], const void* b) {
    const uint64_t start = static_cast<uint32_t>(__cvta_generic_to_shared(b)) >> 4;
    const uint64_t place = start | uint64_t{128 >> 4} << 16 | uint64_t{2048 >> 4} << 32;
#define FOUR(i) "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3])
#define SIXTEEN(i) FOUR(i), FOUR(i + 4), FOUR(i + 8), FOUR(i + 12)
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "{%64, %65, %66, %67}, %68, 1, 1, 1, 0;"
        : SIXTEEN(0), SIXTEEN(16), SIXTEEN(32), SIXTEEN(48)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(place));
#undef SIXTEEN
#undef FOUR
}

#endif

// 16 bytes that the kernel before may have written, while blocks of this one were waiting for it: no cache
// for what never changes may have them.
__device__ __forceinline__ uint4 load_changed(const uint4* from) {
    uint4 value;
    asm volatile("ld.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(from)
                 : "memory");
    return value;
}

// As load_changed, past the first-level cache.
__device__ __forceinline__ uint4 load_changed_once(const uint4* from) {
    uint4 value;
    asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(from)
                 : "memory");
    return value;
}

// 16 or 8 bytes that nobody writes while the kernel lives, and that are read once: they pass the first-level cache by.
__device__ __forceinline__ uint4 load_once(const uint4* from) {
    uint4 value;
    asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
                 : "l"(from));
    return value;
}

__device__ __forceinline__ uint2 load_once(const uint2* from) {
    uint2 value;
    asm volatile("ld.global.nc.L1::no_allocate.v2.u32 {%0, %1}, [%2];"
                 : "=r"(value.x), "=r"(value.y)
                 : "l"(from));
    return value;
}

__device__ __forceinline__ uint32_t load_once(const uint32_t* from) {
    uint32_t value;
    asm volatile("ld.global.nc.L1::no_allocate.u32 %0, [%1];" : "=r"(value) : "l"(from));
    return value;
}

__device__ __forceinline__ uint16_t load_once(const uint16_t* from) {
    uint16_t value;
    asm volatile("ld.global.nc.L1::no_allocate.u16 %0, [%1];" : "=h"(value) : "l"(from));
    return value;
}

#endif
