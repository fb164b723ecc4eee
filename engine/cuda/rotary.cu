// RMS norms, and what stands between the projections of queries, keys and values and attention.

#include "cache.cuh"

// The largest finite bfloat16.
constexpr float BF16_MAX = 3.3895314e38f;

__device__ __forceinline__ uint16_t bf16_of(float value) { return bf16x2_of(value, 0.0f) & 0xffff; }

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
    if (column < size) {
        to.word(token, column) = bf16x2_of(four.x * factor * weight.x, four.y * factor * weight.y);
    }
    if (column + 2 < size) {
        to.word(token, column + 2) = bf16x2_of(four.z * factor * weight.z, four.w * factor * weight.w);
    }
}

// A block norms a token: hidden [tokens, size] becomes activations of the next matrix.
extern "C" __global__ void __launch_bounds__(NORM_THREADS)
    rms_norm(const float* hidden, const float* weight, float eps, int size, Activations output) {
    __shared__ float partial[WARP];
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
        put_four(output, token, first + piece * STEP, size, kept[piece], factor, weights[piece]);
    }
    for (int column = first + KEPT * STEP; column < size; column += STEP) {
        const float4 four = load_four(values, column, size);
        put_four(output, token, column, size, four, factor, load_four(weight, column, size));
    }
}

// As rms_norm, to binary32.
extern "C" __global__ void rms_norm_f32(const float* hidden, const float* weight, float eps, int size,
                                        float* output) {
    __shared__ float partial[WARP];
    grid_wait();
    const size_t start = static_cast<size_t>(blockIdx.x) * size;
    float squares = 0.0f;
    for (int column = threadIdx.x; column < size; column += blockDim.x) {
        squares = __fmaf_rn(hidden[start + column], hidden[start + column], squares);
    }
    const float factor = inverse_root(block_sum(squares, partial), size, eps);
    for (int column = threadIdx.x; column < size; column += blockDim.x) {
        output[start + column] = hidden[start + column] * factor * weight[column];
    }
}

// What is done to the heads of a token.
struct Heads {
    Shape shape;
    // What queries are multiplied by: the root of the head's size, and from e to 2.
    float query_scale;
    float eps;
    // The weights of the norms of queries and keys; null where there are none.
    const float* query_norm;
    const float* key_norm;
};

// Where queries, keys and values of bfloat16 go.
struct ToBf16 {
    uint16_t* queries;
    uint16_t* pages;

    __device__ __forceinline__ void query(const Shape& shape, int token, int head, int value, float x) const {
        const size_t row = static_cast<size_t>(token) * shape.heads + head;
        queries[row * shape.padded() + value] = bf16_of(x);
    }
    __device__ __forceinline__ void key(const Shape& shape, size_t page, int slot, int head, int value,
                                        float x) const {
        const size_t start = page * 2 * shape.side(shape.padded()) + head * PAGE_TOKENS * shape.padded();
        pages[start + key_place(slot, value, shape.padded())] = bf16_of(x);
    }
    // What is not finite becomes finite: attention multiplies it by zero where nobody may see it.
    __device__ __forceinline__ void value(const Shape& shape, size_t page, int slot, int head, int number,
                                          float x) const {
        const size_t side = shape.side(shape.padded());
        const size_t start = (page * 2 + 1) * side + head * PAGE_TOKENS * shape.padded();
        const float finite = fminf(fmaxf(x, -BF16_MAX), BF16_MAX);
        pages[start + value_place(slot, number)] = bf16_of(finite);
    }
};

// Where queries, keys and values of binary32 go.
struct ToF32 {
    float* queries;
    float* pages;

    __device__ __forceinline__ void query(const Shape& shape, int token, int head, int value, float x) const {
        queries[(static_cast<size_t>(token) * shape.heads + head) * shape.head_size + value] = x;
    }
    __device__ __forceinline__ void key(const Shape& shape, size_t page, int slot, int head, int value,
                                        float x) const {
        const size_t start = page * 2 * shape.side(shape.head_size);
        pages[start + (head * PAGE_TOKENS + slot) * shape.head_size + value] = x;
    }
    __device__ __forceinline__ void value(const Shape& shape, size_t page, int slot, int head, int number,
                                          float x) const {
        const size_t start = (page * 2 + 1) * shape.side(shape.head_size);
        pages[start + (head * PAGE_TOKENS + slot) * shape.head_size + number] = x;
    }
};

// A warp turns one head, after its norm where it has one, and hands each value to `put`.
template <class Put>
__device__ __forceinline__ void turn(const float* head, int size, const float* norm, float eps,
                                     const float2* turns, const Put& put) {
    const int lane = lane_id(), pairs = size / 2;
    float factor = 1.0f;
    if (norm != nullptr) {
        float squares = 0.0f;
        for (int value = lane; value < size; value += WARP) {
            squares = __fmaf_rn(head[value], head[value], squares);
        }
        factor = inverse_root(warp_sum(squares), size, eps);
    }
    for (int pair = lane; pair < pairs; pair += WARP) {
        float x = head[pair], y = head[pair + pairs];
        if (norm != nullptr) {
            x = x * factor * norm[pair];
            y = y * factor * norm[pair + pairs];
        }
        const float2 turn = turns[pair];
        put(pair, x * turn.x - y * turn.y);
        put(pair + pairs, y * turn.x + x * turn.y);
    }
}

// A block takes some heads of one token, a warp each: `projected` is [tokens, (heads + 2 * kv_heads) *
// head_size], `turns` has the cosine and sine of each pair for each token.
template <class To>
__device__ __forceinline__ void place(const float* projected, const Heads& heads, const float2* turns,
                                      const Sequence* sequences, const int* sequence_of_row, int block,
                                      const To& to) {
    const Shape shape = heads.shape;
    const int token = blockIdx.x, size = shape.head_size;
    grid_release();
    // What a pass begins with is there before its first kernel.
    const Sequence sequence = sequences[sequence_of_row[token]];
    const int position = sequence.position + token - sequence.first_row;
    const size_t page = sequence.page(block, position);
    const int slot = position % PAGE_TOKENS, all = shape.heads + 2 * shape.kv_heads;
    grid_wait();
    const float* row = projected + static_cast<size_t>(token) * all * size;
    turns += static_cast<size_t>(token) * (size / 2);
    const int index = blockIdx.y * (blockDim.x / WARP) + threadIdx.x / WARP;
    const float* head = row + index * size;
    const int kv_head = (index - shape.heads) % shape.kv_heads;
    if (index < shape.heads) {
        turn(head, size, heads.query_norm, heads.eps, turns, [&](int value, float x) {
            to.query(shape, token, index, value, x * heads.query_scale);
        });
    } else if (index < shape.heads + shape.kv_heads) {
        turn(head, size, heads.key_norm, heads.eps, turns,
             [&](int value, float x) { to.key(shape, page, slot, kv_head, value, x); });
    } else if (index < all) {
        for (int number = lane_id(); number < size; number += WARP) {
            to.value(shape, page, slot, kv_head, number, head[number]);
        }
    }
}

extern "C" __global__ void place_bf16(const float* projected, Heads heads, const float2* turns,
                                      const Sequence* sequences, const int* sequence_of_row, int block,
                                      ToBf16 to) {
    place(projected, heads, turns, sequences, sequence_of_row, block, to);
}

extern "C" __global__ void place_f32(const float* projected, Heads heads, const float2* turns,
                                     const Sequence* sequences, const int* sequence_of_row, int block,
                                     ToF32 to) {
    place(projected, heads, turns, sequences, sequence_of_row, block, to);
}
