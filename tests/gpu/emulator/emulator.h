// What a kernel sees in place of CUDA when g++ compiles it for the processor: the keywords, the
// vector types, the indices of the running thread, and through the headers below the functions of
// the device and of our own `machine.cuh`.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>

#define __device__
#define __host__
#define __constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(bytes) __attribute__((aligned(bytes)))

// `build.sh` finds the kernels of a file in its preprocessed text, by these marks.
#ifdef UMBEL_LIST_KERNELS
#define __global__ __umbel_kernel__
#define __launch_bounds__(...) __umbel_bounds__(__VA_ARGS__)
#else
#define __global__
#define __launch_bounds__(...)
#endif

// Static shared memory lies in the thread-local storage of the one thread that runs a launch. Since
// nothing else of the library does, all of it can be found and filled with NaN before each block,
// also what the instances of a template hold.
#define __shared__ static thread_local

// Dynamic shared memory, of as many bytes as the launch asked for: `DYNAMIC_SHARED(uint4, tiles);`
// where CUDA has `extern __shared__ uint4 tiles[];`.
#define DYNAMIC_SHARED(type, name) \
    type* const name = reinterpret_cast<type*>(::umbel_emulated::dynamic_shared())

struct uint2 {
    unsigned x, y;
} __attribute__((aligned(8)));

struct uint3 {
    unsigned x, y, z;
};

struct uint4 {
    unsigned x, y, z, w;
} __attribute__((aligned(16)));

struct int2 {
    int x, y;
} __attribute__((aligned(8)));

struct int4 {
    int x, y, z, w;
} __attribute__((aligned(16)));

struct float2 {
    float x, y;
} __attribute__((aligned(8)));

struct float4 {
    float x, y, z, w;
} __attribute__((aligned(16)));

using dim3 = uint3;

constexpr uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
constexpr uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
constexpr int2 make_int2(int x, int y) { return {x, y}; }
constexpr int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
constexpr float2 make_float2(float x, float y) { return {x, y}; }
constexpr float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

// Those of the thread that runs. They change at each switch from one thread to another, which
// happens only inside a collective.
extern uint3 threadIdx;
extern uint3 blockIdx;
extern dim3 blockDim;
extern dim3 gridDim;
constexpr int warpSize = 32;

#include "arithmetic.h"
#include "collectives.h"
