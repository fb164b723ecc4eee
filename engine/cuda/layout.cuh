// How matrices and activations lie in memory: in the order in which the lanes of a warp hand them to
// the matrix unit, so that every load is 16 contiguous bytes a lane and nothing is shuffled.
//
// A matrix [rows, columns] is cut into cells of 16 rows and 32 columns, which are stored one after the
// other along a row of cells. Activations [tokens, columns] are cut into cells of 8 tokens and 32
// columns. Columns beyond the end are zeros in both; rows and tokens beyond the end are never read
// out. Lane 4 * g + t of a warp has
//
// - of a matrix the rows g and g + 8, of activations the token g;
// - of the columns 2t, 2t + 1, 2t + 8, 2t + 9 of each half of a cell.
//
// Sums are in one order for every kernel, whatever shares the pass: columns one after the other
// within a segment of 512, in the matrix unit; then the sums of the segments one after the other.

#pragma once

#include "machine.cuh"

constexpr int WARP = 32;
constexpr int CELL_ROWS = 16;
constexpr int CELL_TOKENS = 8;
constexpr int CELL_COLUMNS = 32;
constexpr int SEGMENT_CELLS = 16;

// 4 words of a lane for each cell of activations: the columns 2t and 2t + 1 behind 0, 8, 16 and 24.
constexpr int LANE_WORDS = 4;

__device__ __forceinline__ int lane_id() { return threadIdx.x % WARP; }

// Where the word of the columns `column` and `column + 1`, the first of them even, lies among the
// activations of `token`.
__device__ __forceinline__ size_t activation_word(int token, int column, int cells) {
    const int tile = token / CELL_TOKENS, cell = column / CELL_COLUMNS;
    const int lane = token % CELL_TOKENS * 4 + column % 8 / 2;
    const size_t place = (static_cast<size_t>(tile) * cells + cell) * WARP + lane;
    return place * LANE_WORDS + column % CELL_COLUMNS / 8;
}

__device__ __forceinline__ float silu(float value) { return value / (1.0f + __expf(-value)); }

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) {
        value = __fadd_rn(value, __shfl_xor_sync(0xffffffffu, value, distance));
    }
    return value;
}

// The sum over a block of a multiple of 32 threads, in every thread. `partial` has room for 32.
__device__ __forceinline__ float block_sum(float value, float* partial) {
    value = warp_sum(value);
    if (lane_id() == 0) {
        partial[threadIdx.x / WARP] = value;
    }
    __syncthreads();
    float sum = 0.0f;
    for (int warp = 0; warp < static_cast<int>(blockDim.x) / WARP; ++warp) {
        sum = __fadd_rn(sum, partial[warp]);
    }
    __syncthreads();
    return sum;
}
