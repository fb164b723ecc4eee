// RMS norms, and what stands between the projections of queries, keys and values and attention.

#include "cache.cuh"
#include "norm.cuh"

// The largest finite bfloat16.
constexpr float BF16_MAX = 3.3895314e38f;

__device__ __forceinline__ uint16_t bf16_of(float value) { return bf16x2_of(value, 0.0f) & 0xffff; }

// A block norms a token: hidden [tokens, size] becomes activations of the next matrix.
extern "C" __global__ void __launch_bounds__(NORM_THREADS)
    rms_norm(const float* hidden, const float* weight, float eps, int size, Activations output) {
    __shared__ float partial[WARP];
    const auto put = [&](int token, int column, float4 four, float factor, float4 weights) {
        put_four(output, token, column, size, four, factor, weights);
    };
    norm_token(hidden, weight, eps, size, partial, put);
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

// The largest multiple of a scale, so that each value has an opposite; and the largest binary16.
constexpr float STEPS = 127.0f;
constexpr float F16_MAX = 65504.0f;

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, distance));
    }
    return value;
}

// The nearest integer; what is no number becomes zero.
__device__ __forceinline__ int8_t quant_of(float value) {
    const float within = fminf(fmaxf(value, -STEPS), STEPS);
    return value == value ? __float2int_rn(within) : 0;
}

// A warp keeps a head, which lies in shared memory, in 8 bits: each 32 values have one scale, which is a
// binary16. `place_of` says where an integer goes. What is beyond binary16 becomes the largest that it
// has, and 32 values whose scale vanishes become zeros. Behind the head's size up to `padded` are zeros.
template <class PlaceOf>
__device__ __forceinline__ void keep_bytes(const float* head, int size, int padded, int8_t* quants, uint16_t* scales,
                                           const PlaceOf& place_of) {
    __syncwarp();
    for (int start = 0; start < padded; start += SCALED_TOGETHER) {
        const int index = start + lane_id();
        const float value = index < size ? head[index] : 0.0f;
        const float largest = warp_max(fabsf(value));
        const uint16_t scale = f16_of(fminf(__fdiv_rn(largest, STEPS), F16_MAX));
        const float step = float_of_f16(scale);
        const float inverse = step > 0.0f ? __fdiv_rn(1.0f, step) : 0.0f;
        if (index < padded) {
            quants[place_of(index)] = quant_of(__fmul_rn(value, inverse));
        }
        if (lane_id() == 0) {
            scales[start / SCALED_TOGETHER * PAGE_TOKENS] = scale;
        }
    }
}

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

// What a warp has to do: one head of one token.
struct Task {
    Sequence sequence;
    int token;
    int position;
    // Among all heads of the token: of queries, then of keys, then of values.
    int index;
    const float* head;
    const float2* turns;

    // `projected` is [tokens, (heads + 2 * kv_heads) * head_size], `all_turns` has the cosine and sine of
    // each pair for each token. What a pass begins with is there before its first kernel.
    __device__ __forceinline__ Task(const float* projected, const Shape& shape, const float2* all_turns,
                                    const Sequence* sequences, const int* sequence_of_row) {
        const int all = shape.heads + 2 * shape.kv_heads;
        token = blockIdx.x;
        sequence = sequences[sequence_of_row[token]];
        position = sequence.position + token - sequence.first_row;
        index = blockIdx.y * (blockDim.x / WARP) + threadIdx.x / WARP;
        head = projected + (static_cast<size_t>(token) * all + index) * shape.head_size;
        turns = all_turns + static_cast<size_t>(token) * (shape.head_size / 2);
    }
    __device__ __forceinline__ int slot() const { return position % PAGE_TOKENS; }
};

// A block takes some heads of one token, a warp each.
template <class To>
__device__ __forceinline__ void place(const float* projected, const Heads& heads, const float2* turns,
                                      const Sequence* sequences, const int* sequence_of_row, int block,
                                      const To& to) {
    grid_release();
    const Shape shape = heads.shape;
    const Task task(projected, shape, turns, sequences, sequence_of_row);
    const size_t page = task.sequence.page(block, task.position);
    const int size = shape.head_size, slot = task.slot(), index = task.index;
    const int kv_head = (index - shape.heads) % shape.kv_heads;
    grid_wait();
    if (index < shape.heads) {
        turn(task.head, size, heads.query_norm, heads.eps, task.turns, [&](int value, float x) {
            to.query(shape, task.token, index, value, x * heads.query_scale);
        });
    } else if (index < shape.heads + shape.kv_heads) {
        turn(task.head, size, heads.key_norm, heads.eps, task.turns,
             [&](int value, float x) { to.key(shape, page, slot, kv_head, value, x); });
    } else if (index < shape.heads + 2 * shape.kv_heads) {
        for (int number = lane_id(); number < size; number += WARP) {
            to.value(shape, page, slot, kv_head, number, task.head[number]);
        }
    }
}

// As `place`, where keys and values are kept in 8 bits: queries go where `to` says, which else would have
// values of so many bytes and heads of the size `padded`. Shared memory has room for a head a warp.
template <class To>
__device__ __forceinline__ void place_bytes(const float* projected, const Heads& heads, const float2* turns,
                                            const Sequence* sequences, const int* sequence_of_row, int block,
                                            const To& to, int value_bytes, int padded) {
    DYNAMIC_SHARED(float, shared);
    grid_release();
    const Shape shape = heads.shape;
    const Task task(projected, shape, turns, sequences, sequence_of_row);
    const int size = shape.head_size, slot = task.slot(), index = task.index;
    const int of_keys = index - shape.heads, kv_head = of_keys % shape.kv_heads;
    float* head = shared + threadIdx.x / WARP * size;
    grid_wait();
    if (index < shape.heads) {
        turn(task.head, size, heads.query_norm, heads.eps, task.turns, [&](int value, float x) {
            to.query(shape, task.token, index, value, x * heads.query_scale);
        });
        return;
    }
    if (of_keys >= 2 * shape.kv_heads) {
        return;
    }
    const bool is_key = of_keys < shape.kv_heads;
    if (is_key) {
        turn(task.head, size, heads.key_norm, heads.eps, task.turns, [&](int value, float x) { head[value] = x; });
    } else {
        for (int number = lane_id(); number < size; number += WARP) {
            head[number] = task.head[number];
        }
    }
    const BytePage page(shape, task.sequence, padded, value_bytes, block, task.position);
    const int side = is_key ? 0 : 1, groups = (padded + SCALED_TOGETHER - 1) / SCALED_TOGETHER;
    uint8_t* pages = reinterpret_cast<uint8_t*>(to.pages);
    int8_t* quants = reinterpret_cast<int8_t*>(pages + page.quants) + side * shape.side(padded);
    uint16_t* scales = reinterpret_cast<uint16_t*>(pages + page.scales) + side * shape.side(groups);
    quants += static_cast<size_t>(kv_head) * PAGE_TOKENS * padded;
    scales += kv_head * PAGE_TOKENS * groups + slot;
    keep_bytes(head, size, padded, quants, scales, [&](int value) {
        return value_bytes == F32_PAGES ? slot * padded + value
               : is_key                 ? key_place(slot, value, padded)
                                        : value_place(slot, value);
    });
}

#define PLACE(name, To, ...)                                                                             \
    extern "C" __global__ void name(const float* projected, Heads heads, const float2* turns,            \
                                    const Sequence* sequences, const int* sequence_of_row, int block,    \
                                    To to) {                                                             \
        __VA_ARGS__;                                                                                     \
    }

PLACE(place_bf16, ToBf16, place(projected, heads, turns, sequences, sequence_of_row, block, to))
PLACE(place_f32, ToF32, place(projected, heads, turns, sequences, sequence_of_row, block, to))
PLACE(place_bytes_bf16, ToBf16,
      place_bytes(projected, heads, turns, sequences, sequence_of_row, block, to, BF16_PAGES, heads.shape.padded()))
PLACE(place_bytes_f32, ToF32,
      place_bytes(projected, heads, turns, sequences, sequence_of_row, block, to, F32_PAGES, heads.shape.head_size))
