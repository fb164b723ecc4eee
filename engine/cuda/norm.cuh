// Norms by the root mean square.

#pragma once

#include "layout.cuh"

__device__ __forceinline__ float inverse_root(float squares, int count, float eps) {
    return 1.0f / sqrtf(squares / static_cast<float>(count) + eps);
}

constexpr int NORM_THREADS = 512;
// Pieces of four columns that a thread of a norm keeps from the first time to the second.
constexpr int KEPT = 2;

// The columns `column` to `column + 3` of a row; zeros behind its end.
__device__ __forceinline__ float4 load_four(const float* row, int column, int size) {
    if (size % 4 == 0) {
        return column < size ? *reinterpret_cast<const float4*>(row + column) : make_float4(0, 0, 0, 0);
    }
    const auto at = [&](int place) { return place < size ? row[place] : 0.0f; };
    return make_float4(at(column), at(column + 1), at(column + 2), at(column + 3));
}

__device__ __forceinline__ float add_squares(float4 four, float squares) {
    squares = __fmaf_rn(four.x, four.x, squares);
    squares = __fmaf_rn(four.y, four.y, squares);
    squares = __fmaf_rn(four.z, four.z, squares);
    return __fmaf_rn(four.w, four.w, squares);
}

__device__ __forceinline__ void put_four(const Activations& to, int token, int column, int size, float4 four,
                                         float factor, float4 weight) {
    const uint32_t first = bf16x2_of(four.x * factor * weight.x, four.y * factor * weight.y);
    const uint32_t second = bf16x2_of(four.z * factor * weight.z, four.w * factor * weight.w);
    // In core matrices both words follow each other.
    if (to.cores && column + 2 < size) {
        *reinterpret_cast<uint2*>(&to.word(token, column)) = make_uint2(first, second);
        return;
    }
    if (column < size) {
        to.word(token, column) = first;
    }
    if (column + 2 < size) {
        to.word(token, column + 2) = second;
    }
}

// A block norms a token, one of hidden [tokens, size]: `put` has four columns, the factor of all of them and
// their weights. `partial` is shared memory for a value of each warp.
template <class Put>
__device__ __forceinline__ void norm_token(const float* hidden, const float* weight, float eps, int size,
                                           float* partial, const Put& put) {
    const int token = blockIdx.x, first = threadIdx.x * 4;
    constexpr int STEP = NORM_THREADS * 4;
    const float* values = hidden + static_cast<size_t>(token) * size;
    float4 kept[KEPT], weights[KEPT];
    grid_release();
#pragma unroll
    for (int piece = 0; piece < KEPT; ++piece) {
        weights[piece] = load_four(weight, first + piece * STEP, size);
    }
    grid_wait();
#pragma unroll
    for (int piece = 0; piece < KEPT; ++piece) {
        kept[piece] = load_four(values, first + piece * STEP, size);
    }
    float squares = 0.0f;
#pragma unroll
    for (int piece = 0; piece < KEPT; ++piece) {
        squares = add_squares(kept[piece], squares);
    }
    for (int column = first + KEPT * STEP; column < size; column += STEP) {
        squares = add_squares(load_four(values, column, size), squares);
    }
    const float factor = inverse_root(block_sum(squares, partial), size, eps);
#pragma unroll
    for (int piece = 0; piece < KEPT; ++piece) {
        put(token, first + piece * STEP, kept[piece], factor, weights[piece]);
    }
    for (int column = first + KEPT * STEP; column < size; column += STEP) {
        const float4 four = load_four(values, column, size);
        put(token, column, four, factor, load_four(weight, column, size));
    }
}
