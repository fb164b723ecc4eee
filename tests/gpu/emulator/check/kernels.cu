// Small kernels of the emulator's own test: what must work, and faults that must be reported.
#ifdef UMBEL_EMULATED
#include "emulator.h"
#else
#error "these kernels exist to test the emulator"
#endif

namespace {

constexpr int WARPS = 8;

// The sum over the warp, in every lane.
__device__ __forceinline__ float sum_of_warp(float x) {
    for (int bits = 16; bits > 0; bits /= 2) {
        x += __shfl_xor_sync(~0u, x, bits);
    }
    return x;
}

template <int COUNT>
__device__ __forceinline__ float* partial_sums() {
    __shared__ float sums[COUNT];
    return sums;
}

}  // namespace

extern "C" __global__ void add(const float* a, const float* b, float* sum, int count) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) {
        sum[i] = a[i] + b[i];
    }
}

// One sum for each block, of which each thread has `each` numbers.
extern "C" __global__ void __launch_bounds__(WARPS * 32, 2)
    reduce(const float* __restrict__ from, float* __restrict__ sums, int each) {
    float* const partial = partial_sums<WARPS>();
    float sum = 0;
    for (int i = 0; i < each; i++) {
        sum += from[(blockIdx.x * each + i) * blockDim.x + threadIdx.x];
    }
    sum = sum_of_warp(sum);
    if (threadIdx.x % 32 == 0) {
        partial[threadIdx.x / 32] = sum;
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        sum = sum_of_warp(threadIdx.x < WARPS ? partial[threadIdx.x] : 0);
        if (threadIdx.x == 0) {
            sums[blockIdx.x] = sum;
        }
    }
}

// The same without the barrier.
extern "C" __global__ void __launch_bounds__(WARPS * 32) reduce_too_early(const float* from,
                                                                         float* sums) {
    __shared__ float partial[WARPS];
    const float sum = sum_of_warp(from[threadIdx.x]);
    if (threadIdx.x % 32 == 0) {
        partial[threadIdx.x / 32] = sum;
    }
    if (threadIdx.x == 0) {
        float all = 0;
        for (int i = 0; i < WARPS; i++) {
            all += partial[i];
        }
        sums[0] = all;
    }
}

// d += a * b for row-major a (16 x 16) and d (16 x 8), and b as 8 columns of 16.
extern "C" __global__ void multiply(const uint32_t* a, const uint32_t* b, float* d) {
    const int group = threadIdx.x / 4, place = threadIdx.x % 4;
    const uint32_t mine[4] = {a[group * 8 + place], a[(group + 8) * 8 + place],
                              a[group * 8 + place + 4], a[(group + 8) * 8 + place + 4]};
    const uint32_t theirs[2] = {b[group * 8 + place], b[group * 8 + place + 4]};
    float sums[4];
    for (int i = 0; i < 4; i++) {
        sums[i] = d[(group + i / 2 * 8) * 8 + place * 2 + i % 2];
    }
    mma_bf16(sums, mine, theirs);
    for (int i = 0; i < 4; i++) {
        d[(group + i / 2 * 8) * 8 + place * 2 + i % 2] = sums[i];
    }
}

// Copies `tiles` tiles of the block's size through two buffers of shared memory, the second and
// third argument of the pipeline being right or a wait that comes one group too late.
template <int LEFT>
__device__ __forceinline__ void copy_tiles(const uint4* from, uint4* to, int tiles, int valid) {
    DYNAMIC_SHARED(uint4, buffers);
    const int size = blockDim.x, thread = threadIdx.x;
    const auto start = [&](int tile) {
        const int i = tile * size + thread;
        copy_async_16(&buffers[tile % 2 * size + thread], &from[i], i < valid);
    };
    start(0);
    copy_async_commit();
    for (int tile = 0; tile < tiles; tile++) {
        if (tile + 1 < tiles) {
            start(tile + 1);
        }
        copy_async_commit();
        copy_async_wait<LEFT>();
        __syncthreads();
        // The neighbour's bytes, so that the barriers are needed.
        to[tile * size + thread] = buffers[tile % 2 * size + (thread + 1) % size];
        __syncthreads();
    }
}

extern "C" __global__ void copy(const uint4* from, uint4* to, int tiles, int valid) {
    copy_tiles<1>(from, to, tiles, valid);
}

extern "C" __global__ void copy_without_wait(const uint4* from, uint4* to, int tiles, int valid) {
    copy_tiles<2>(from, to, tiles, valid);
}

extern "C" __global__ void copy_misaligned(const uint32_t* from) {
    DYNAMIC_SHARED(uint4, buffer);
    copy_async_16(buffer, from + 1);
}

extern "C" __global__ void shuffles(int* out) {
    const int lane = threadIdx.x;
    out[lane] = __shfl_sync(~0u, lane * 10, 5);
    out[32 + lane] = __shfl_down_sync(~0u, lane, 1);
    out[64 + lane] = __shfl_up_sync(~0u, lane, 2);
    out[96 + lane] = __ballot_sync(~0u, lane % 3 == 0);
    // Both halves of the warp by themselves.
    if (lane < 16) {
        out[128 + lane] = __shfl_xor_sync(0x0000ffffu, lane, 1);
    } else {
        out[128 + lane] = __shfl_xor_sync(0xffff0000u, lane, 2);
    }
    __syncwarp();
    out[160 + lane] = __any_sync(~0u, lane == 7) + 2 * __all_sync(~0u, lane < 31);
}

extern "C" __global__ void barrier_for_some() {
    if (threadIdx.x != 3) {
        __syncthreads();
    }
}

extern "C" __global__ void barriers_apart() {
    if (threadIdx.x == 3) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}

extern "C" __global__ void shuffle_for_some(int* out) {
    if (threadIdx.x >= 2) {
        out[threadIdx.x] = __shfl_xor_sync(~0u, 1, 1);
    }
}

extern "C" __global__ void write(float* to, int index) {
    if (blockIdx.x == 1 && threadIdx.x == 2) {
        to[index] = 1;
    }
}

extern "C" __global__ void write_shared(float* to, int index) {
    DYNAMIC_SHARED(float, shared);
    shared[index] = 1;
    to[0] = shared[index];
}

extern "C" __global__ void index_array(float* to, int index) {
    __shared__ float numbers[4];
    numbers[index] = 1;
    to[0] = numbers[index];
}

extern "C" __global__ void read_vector(const float* from, float* to) {
    const float4 four = *reinterpret_cast<const float4*>(from + 1);
    to[0] = four.x + four.w;
}

// Bits of conversions, one for each thread: to bfloat16, to binary16 and back, and a product.
extern "C" __global__ void convert(const float* x, uint32_t* bits, int count) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) {
        bits[4 * i] = bf16x2_of(x[i], -x[i]);
        bits[4 * i + 1] = f16_of(x[i]);
        bits[4 * i + 2] = __float_as_uint(float_of_f16(static_cast<uint16_t>(i)));
        bits[4 * i + 3] = bf16x2_fma(bits[4 * i], 0x3f803f80u, 0x00010001u);
    }
}
