// Which experts tokens go through, in which order their rows are multiplied, and the sum of what comes of
// them. Products in bfloat16 are those of experts_few.cu; in binary32 they are here.
//
// Hidden states come from strangers, and may be no numbers: whatever the logits are, a token goes through as
// many experts as any other, each of them once.

#include "experts.cuh"
#include "norm.cuh"

// The most experts of a block: `EXPERT_COUNT_MAX` in shard/src/config/check.rs.
constexpr int EXPERTS_MAX = 1024;

// As rms_norm of rotary.cu, and the same before it is rounded: a choice hangs by a hair where two logits are
// alike.
extern "C" __global__ void __launch_bounds__(NORM_THREADS)
    experts_norm(const float* hidden, const float* weight, float eps, int size, Activations rounded, float* exact) {
    __shared__ float partial[WARP];
    const auto put = [&](int token, int column, float4 four, float factor, float4 weights) {
        put_four(rounded, token, column, size, four, factor, weights);
        const float values[4] = {four.x * factor * weights.x, four.y * factor * weights.y,
                                 four.z * factor * weights.z, four.w * factor * weights.w};
#pragma unroll
        for (int next = 0; next < 4; ++next) {
            if (column + next < size) {
                exact[static_cast<size_t>(token) * size + column + next] = values[next];
            }
        }
    };
    norm_token(hidden, weight, eps, size, partial, put);
}

constexpr int ROUTER_THREADS = 128;
// Tokens for which a block multiplies its rows.
constexpr int ROUTER_TOKENS = 8;

// The logits [tokens, experts] of 8 tokens and of some experts, which are rows of the matrix. Whichever
// kernel computes one, its sum is in one order: of a thread's columns, of a warp, of all warps.
//
// Of few tokens the matrix is what takes time: then AHEAD pieces of it are on their way before the tokens are
// there.
template <int ROWS, int AHEAD>
__device__ __forceinline__ void router(const float* matrix, const float* input, int columns, int tokens, int experts,
                                       float* logits) {
    constexpr int STEP = ROUTER_THREADS * 4, WARPS = ROUTER_THREADS / WARP;
    __shared__ float of_warps[WARPS][ROWS * ROUTER_TOKENS];
    const int first_row = blockIdx.x * ROWS, first_token = blockIdx.y * ROUTER_TOKENS;
    const int count = min(ROUTER_TOKENS, tokens - first_token);
    grid_release();
    const auto weights_at = [&](int row, int column) {
        // Of rows that are not there the last is read again, for nobody.
        return load_four(matrix + static_cast<size_t>(min(first_row + row, experts - 1)) * columns, column, columns);
    };
    float4 ahead[ROWS][AHEAD];
#pragma unroll
    for (int piece = 0; piece < AHEAD; ++piece) {
#pragma unroll
        for (int row = 0; row < ROWS; ++row) {
            ahead[row][piece] = weights_at(row, threadIdx.x * 4 + piece * STEP);
        }
    }
    grid_wait();
    float sums[ROWS][ROUTER_TOKENS] = {};
    for (int start = threadIdx.x * 4; start < columns; start += AHEAD * STEP) {
#pragma unroll
        for (int piece = 0; piece < AHEAD; ++piece) {
            const int column = start + piece * STEP;
            float4 weights[ROWS];
#pragma unroll
            for (int row = 0; row < ROWS; ++row) {
                weights[row] = ahead[row][piece];
                ahead[row][piece] = weights_at(row, column + AHEAD * STEP);
            }
#pragma unroll
            for (int token = 0; token < ROUTER_TOKENS; ++token) {
                if (token < count) {
                    const float* values = input + static_cast<size_t>(first_token + token) * columns;
                    const float4 four = load_four(values, column, columns);
#pragma unroll
                    for (int row = 0; row < ROWS; ++row) {
                        float& sum = sums[row][token];
                        sum = __fmaf_rn(weights[row].x, four.x, sum);
                        sum = __fmaf_rn(weights[row].y, four.y, sum);
                        sum = __fmaf_rn(weights[row].z, four.z, sum);
                        sum = __fmaf_rn(weights[row].w, four.w, sum);
                    }
                }
            }
        }
    }
#pragma unroll
    for (int token = 0; token < ROUTER_TOKENS; ++token) {
        if (token < count) {
#pragma unroll
            for (int row = 0; row < ROWS; ++row) {
                const float sum = warp_sum(sums[row][token]);
                if (lane_id() == 0) {
                    of_warps[threadIdx.x / WARP][row * ROUTER_TOKENS + token] = sum;
                }
            }
        }
    }
    __syncthreads();
    const int row = threadIdx.x / ROUTER_TOKENS, token = threadIdx.x % ROUTER_TOKENS;
    if (row < ROWS && first_row + row < experts && token < count) {
        float sum = 0.0f;
#pragma unroll
        for (int warp = 0; warp < WARPS; ++warp) {
            sum = __fadd_rn(sum, of_warps[warp][row * ROUTER_TOKENS + token]);
        }
        logits[static_cast<size_t>(first_token + token) * experts + first_row + row] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(ROUTER_THREADS)
    experts_router_few(const float* matrix, const float* input, int columns, int tokens, int experts, float* logits) {
    router<1, 4>(matrix, input, columns, tokens, experts, logits);
}

extern "C" __global__ void __launch_bounds__(ROUTER_THREADS)
    experts_router_many(const float* matrix, const float* input, int columns, int tokens, int experts, float* logits) {
    router<4, 1>(matrix, input, columns, tokens, experts, logits);
}

// How tokens choose among experts.
struct Choice {
    int experts;
    int per_token;
    // Whether the softmax is over the logits of the chosen ones alone.
    int normalized;
    // The most rows of a tile.
    int tile_rows;
};

// What follows from the logits, of so many tokens.
struct Routes {
    // `tiles_max` of them.
    RowTile* tiles;
    // For each row its token and its expert.
    int* tokens;
    int* experts;
    // For each pair, in the order of tokens and then of experts, its row, and what comes of that is multiplied
    // with.
    int* rows;
    float* weights;
    int tiles_max;
    int count;
};

// Numbers in the order of logits, of those alike the first expert's above: from 1 to less than 2^64 - 1. In
// this order (IEEE 754's of all values) what is no number has its place as well.
__device__ __forceinline__ uint64_t rank_of(float logit, int expert) {
    const uint32_t bits = __float_as_uint(logit);
    const uint32_t ordered = bits ^ (bits >> 31 != 0 ? 0xffffffffu : 0x80000000u);
    return static_cast<uint64_t>(ordered) << 32 | static_cast<uint32_t>(EXPERTS_MAX - expert);
}

__device__ __forceinline__ uint64_t warp_max(uint64_t value) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        const uint64_t other = __shfl_xor_sync(0xffffffffu, value, distance);
        value = other > value ? other : value;
    }
    return value;
}

__device__ __forceinline__ float warp_max(float value) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, distance));
    }
    return value;
}

// A warp finds the experts of a token, the weight of each, and its place among the rows of the expert so far.
__device__ __forceinline__ void choose(const float* logits, int token, const Choice& choice, const Routes& to,
                                       int* pair_experts, int* counts) {
    uint64_t least = ~uint64_t{0};
    for (int chosen = 0; chosen < choice.per_token; ++chosen) {
        uint64_t next = 0;
        for (int expert = lane_id(); expert < choice.experts; expert += WARP) {
            const uint64_t rank = rank_of(logits[expert], expert);
            next = rank < least && rank > next ? rank : next;
        }
        least = warp_max(next);
    }
    float most = __uint_as_float(0xff800000u);
    for (int expert = lane_id(); expert < choice.experts; expert += WARP) {
        most = rank_of(logits[expert], expert) >= least ? fmaxf(most, logits[expert]) : most;
    }
    most = warp_max(most);
    float sum = 0.0f;
    for (int expert = lane_id(); expert < choice.experts; expert += WARP) {
        if (!choice.normalized || rank_of(logits[expert], expert) >= least) {
            sum = __fadd_rn(sum, expf(logits[expert] - most));
        }
    }
    sum = warp_sum(sum);
    int pair = token * choice.per_token;
    for (int start = 0; start < choice.experts; start += WARP) {
        const int expert = start + lane_id();
        const bool chosen = expert < choice.experts && rank_of(logits[expert], expert) >= least;
        const uint32_t votes = __ballot_sync(0xffffffffu, chosen);
        if (chosen) {
            const int place = pair + __popc(votes & ((1u << lane_id()) - 1));
            to.weights[place] = expf(logits[expert] - most) / sum;
            pair_experts[place] = expert;
            to.rows[place] = atomicAdd(&counts[expert], 1);
        }
        pair += __popc(votes);
    }
}

// The sum of the values of the lanes up to this one.
__device__ __forceinline__ int sum_until(int value) {
#pragma unroll
    for (int distance = 1; distance < WARP; distance *= 2) {
        const int before = __shfl_up_sync(0xffffffffu, value, distance);
        value += lane_id() >= distance ? before : 0;
    }
    return value;
}

// A warp cuts the rows of all experts into tiles, and says how many these are; `counts` become the first rows.
__device__ __forceinline__ int cut(int* counts, const Choice& choice, RowTile* tiles) {
    int rows = 0, cells = 0, count = 0;
    for (int start = 0; start < choice.experts; start += WARP) {
        const int expert = start + lane_id();
        const int own = expert < choice.experts ? counts[expert] : 0;
        const int own_cells = (own + CELL_TOKENS - 1) / CELL_TOKENS;
        const int own_tiles = (own + choice.tile_rows - 1) / choice.tile_rows;
        const int rows_until = sum_until(own), cells_until = sum_until(own_cells), tiles_until = sum_until(own_tiles);
        const int first = rows + rows_until - own, padded = (cells + cells_until - own_cells) * CELL_TOKENS;
        if (expert < choice.experts) {
            counts[expert] = first;
        }
        for (int tile = 0; tile < own_tiles; ++tile) {
            const int before = tile * choice.tile_rows;
            tiles[count + tiles_until - own_tiles + tile] =
                make_int4(expert, min(choice.tile_rows, own - before), first + before, padded + before);
        }
        rows += __shfl_sync(0xffffffffu, rows_until, WARP - 1);
        cells += __shfl_sync(0xffffffffu, cells_until, WARP - 1);
        count += __shfl_sync(0xffffffffu, tiles_until, WARP - 1);
    }
    return count;
}

// One block chooses for all tokens of a pass, a warp for each, and puts the rows of each expert together.
extern "C" __global__ void __launch_bounds__(1024)
    experts_route(const float* logits, Choice choice, int* pair_experts, Routes to) {
    __shared__ int counts[EXPERTS_MAX];
    __shared__ int tile_count;
    for (int expert = threadIdx.x; expert < choice.experts; expert += blockDim.x) {
        counts[expert] = 0;
    }
    grid_release();
    grid_wait();
    __syncthreads();
    for (int token = threadIdx.x / WARP; token < to.count; token += blockDim.x / WARP) {
        choose(logits + static_cast<size_t>(token) * choice.experts, token, choice, to, pair_experts, counts);
    }
    __syncthreads();
    if (threadIdx.x < WARP) {
        const int found = cut(counts, choice, to.tiles);
        if (threadIdx.x == 0) {
            tile_count = found;
        }
    }
    __syncthreads();
    for (int tile = tile_count + threadIdx.x; tile < to.tiles_max; tile += blockDim.x) {
        to.tiles[tile] = make_int4(0, 0, 0, 0);
    }
    for (int pair = threadIdx.x; pair < to.count * choice.per_token; pair += blockDim.x) {
        const int expert = pair_experts[pair], row = counts[expert] + to.rows[pair];
        to.rows[pair] = row;
        to.tokens[row] = pair / choice.per_token;
        to.experts[row] = expert;
    }
}

// Adds to the hidden states of each token what its experts made of it, in the order of their numbers.
extern "C" __global__ void experts_combine(const float* outputs, const int* rows, const float* weights, int per_token,
                                           int size, float* hidden) {
    grid_release();
    grid_wait();
    const int column = blockIdx.x * blockDim.x + threadIdx.x;
    const size_t first = static_cast<size_t>(blockIdx.y) * per_token;
    if (column >= size) {
        return;
    }
    float sum = 0.0f;
#pragma unroll 4
    for (int next = 0; next < per_token; ++next) {
        const float value = outputs[static_cast<size_t>(rows[first + next]) * size + column];
        sum = __fadd_rn(sum, __fmul_rn(weights[first + next], value));
    }
    float& to = hidden[static_cast<size_t>(blockIdx.y) * size + column];
    to = __fadd_rn(to, sum);
}

// In binary32 a warp multiplies a row of an expert's matrix [rows, columns] with a row of the input: with that
// of its token, or where `tokens` is null with its own.
extern "C" __global__ void experts_linear_f32(const float* matrices, const float* input, int columns, int rows,
                                              const int* experts, const int* tokens, float* output) {
    grid_wait();
    const int own = blockIdx.x, row = blockIdx.y * (blockDim.x / WARP) + threadIdx.x / WARP;
    if (row >= rows) {
        return;
    }
    const float* weights = matrices + (static_cast<size_t>(experts[own]) * rows + row) * columns;
    const float* values = input + static_cast<size_t>(tokens != nullptr ? tokens[own] : own) * columns;
    float sum = 0.0f;
    for (int column = lane_id(); column < columns; column += WARP) {
        sum = __fmaf_rn(weights[column], values[column], sum);
    }
    sum = warp_sum(sum);
    if (lane_id() == 0) {
        output[static_cast<size_t>(own) * rows + row] = sum;
    }
}
