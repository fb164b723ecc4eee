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

// 16 or 8 bytes that are read once: they pass the first-level cache by.
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
