// Models in binary32: the same operations on plain rows, each sum in one fixed order. They are here
// to be right; models that are served have narrower weights.

#include "cache.cuh"
#include "epilogue.cuh"

constexpr int TOKENS_TOGETHER = 8;

// Half of the sums of a warp's lanes, of which each has twice as many: what it keeps, and what the lane
// at `distance` has of the same ones. The lanes whose number has that bit keep the upper half.
template <int COUNT>
__device__ __forceinline__ void halve(const float (&sums)[2 * COUNT], int distance, float (&half)[COUNT]) {
    const bool upper = lane_id() & distance;
#pragma unroll
    for (int place = 0; place < COUNT; ++place) {
        const float given = upper ? sums[place] : sums[COUNT + place];
        const float kept = upper ? sums[COUNT + place] : sums[place];
        half[place] = __fadd_rn(kept, __shfl_xor_sync(0xffffffffu, given, distance));
    }
}

// A warp multiplies a row of the matrix [rows, columns] with 8 tokens of the input.
extern "C" __global__ void linear_f32(const float* matrix, const float* input, int columns, int tokens,
                                      int rows, ToRows to) {
    grid_wait();
    const int row = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
    const int first = blockIdx.y * TOKENS_TOGETHER, count = min(TOKENS_TOGETHER, tokens - first);
    if (row >= rows) {
        return;
    }
    float sums[TOKENS_TOGETHER] = {};
    for (int column = lane_id(); column < columns; column += WARP) {
        const float weight = matrix[static_cast<size_t>(row) * columns + column];
#pragma unroll
        for (int token = 0; token < TOKENS_TOGETHER; ++token) {
            if (token < count) {
                const float value = input[static_cast<size_t>(first + token) * columns + column];
                sums[token] = __fmaf_rn(weight, value, sums[token]);
            }
        }
    }
    // The order of warp_sum, in which each lane keeps the sums of ever fewer tokens.
    float of_four[4], of_two[2], of_one[1];
    halve(sums, 16, of_four);
    halve(of_four, 8, of_two);
    halve(of_two, 4, of_one);
    float sum = __fadd_rn(of_one[0], __shfl_xor_sync(0xffffffffu, of_one[0], 2));
    sum = __fadd_rn(sum, __shfl_xor_sync(0xffffffffu, sum, 1));
    const int token = lane_id() / 16 * 4 + lane_id() / 8 % 2 * 2 + lane_id() / 4 % 2;
    if (token < count && lane_id() % 4 == 0) {
        to.store(first + token, row, sum);
    }
}

// silu(gate) * up, of rows [tokens, 2 * size] with the gates first.
extern "C" __global__ void gated_f32(const float* input, int size, float* output) {
    grid_wait();
    const size_t token = blockIdx.y;
    const int feature = blockIdx.x * blockDim.x + threadIdx.x;
    if (feature < size) {
        const float gate = input[token * 2 * size + feature];
        output[token * size + feature] = gate / (1.0f + expf(-gate)) * input[token * 2 * size + size + feature];
    }
}

// A head's keys or values at a position, in binary32.
struct F32Head {
    const float* values;

    __device__ __forceinline__ F32Head(const uint8_t* cache, const Shape& shape, const Sequence& sequence, int block,
                                       int at, int side, int kv_head) {
        const size_t start = (sequence.page(block, at) * 2 + side) * shape.side(shape.head_size);
        values = reinterpret_cast<const float*>(cache) + start + (kv_head * PAGE_TOKENS + at % PAGE_TOKENS) * shape.head_size;
    }
    __device__ __forceinline__ float at(int index) const { return values[index]; }
};

// As F32Head, in 8 bits.
struct ByteHead {
    const int8_t* quants;
    const uint16_t* scales;

    __device__ __forceinline__ ByteHead(const uint8_t* cache, const Shape& shape, const Sequence& sequence, int block,
                                        int at, int side, int kv_head) {
        const int size = shape.head_size, groups = (size + SCALED_TOGETHER - 1) / SCALED_TOGETHER;
        const BytePage page(shape, sequence, size, F32_PAGES, block, at);
        quants = reinterpret_cast<const int8_t*>(cache + page.quants) + side * shape.side(size) +
                 (kv_head * PAGE_TOKENS + at % PAGE_TOKENS) * size;
        scales = reinterpret_cast<const uint16_t*>(cache + page.scales) + side * shape.side(groups) +
                 kv_head * PAGE_TOKENS * groups + at % PAGE_TOKENS;
    }
    __device__ __forceinline__ float at(int index) const {
        const float scale = float_of_f16(scales[index / SCALED_TOGETHER * PAGE_TOKENS]);
        return __fmul_rn(static_cast<float>(quants[index]), scale);
    }
};

// A block takes one head of one token over all positions it sees, as many at a time as it has
// threads, from position 0 on.
template <class Head>
__device__ __forceinline__ void attend(const float* queries, const uint8_t* cache, const Shape& shape,
                                       const Sequence* sequences, const int* sequence_of_row, int block,
                                       float* output) {
    grid_wait();
    constexpr int POSITIONS = 128;
    __shared__ float weights[POSITIONS];
    __shared__ float partial[WARP];
    __shared__ float maximum_of_chunk;
    const int token = blockIdx.x, head = blockIdx.y, thread = threadIdx.x, size = shape.head_size;
    const int kv_head = head / (shape.heads / shape.kv_heads);
    const Sequence sequence = sequences[sequence_of_row[token]];
    const int position = sequence.position + token - sequence.first_row;
    const float* query = queries + (static_cast<size_t>(token) * shape.heads + head) * size;
    float* out = output + (static_cast<size_t>(token) * shape.heads + head) * size;
    const int first = shape.first_seen(position);
    float maximum = __uint_as_float(0xff800000u), sum = 0.0f;
    for (int start = first / POSITIONS * POSITIONS; start <= position; start += POSITIONS) {
        const int at = start + thread;
        float score = __uint_as_float(0xff800000u);
        if (at >= first && at <= position) {
            const Head key(cache, shape, sequence, block, at, 0, kv_head);
            score = 0.0f;
            for (int value = 0; value < size; ++value) {
                score = __fmaf_rn(query[value], key.at(value), score);
            }
        }
        weights[thread] = score;
        __syncthreads();
        if (thread == 0) {
            float largest = maximum;
            for (int place = 0; place < POSITIONS; ++place) {
                largest = fmaxf(largest, weights[place]);
            }
            maximum_of_chunk = largest;
        }
        __syncthreads();
        const float kept = exp2f(maximum - maximum_of_chunk);
        maximum = maximum_of_chunk;
        const float weight = exp2f(score - maximum);
        sum = __fmaf_rn(sum, kept, block_sum(weight, partial));
        weights[thread] = weight;
        __syncthreads();
        for (int number = thread; number < size; number += POSITIONS) {
            float value = start <= first ? 0.0f : out[number] * kept;
            for (int place = max(0, first - start); place < min(POSITIONS, position + 1 - start); ++place) {
                const Head values(cache, shape, sequence, block, start + place, 1, kv_head);
                value = __fmaf_rn(weights[place], values.at(number), value);
            }
            out[number] = start + POSITIONS > position ? value / sum : value;
        }
        __syncthreads();
    }
}

extern "C" __global__ void attend_f32(const float* queries, const uint8_t* cache, Shape shape,
                                      const Sequence* sequences, const int* sequence_of_row, int block,
                                      float* output) {
    attend<F32Head>(queries, cache, shape, sequences, sequence_of_row, block, output);
}

extern "C" __global__ void attend_bytes_f32(const float* queries, const uint8_t* cache, Shape shape,
                                            const Sequence* sequences, const int* sequence_of_row, int block,
                                            float* output) {
    attend<ByteHead>(queries, cache, shape, sequences, sequence_of_row, block, output);
}
