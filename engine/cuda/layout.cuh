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
// For linear_hopper.cu the activations of a cell lie in core matrices instead: four of 8 tokens and 8
// columns, one after the other, with 16 bytes for each token.
//
// Sums are in one order for every kernel, whatever shares the pass: columns one after the other, 16 at
// a time, within each of at most four parts of a row, in the matrix unit; then the sums of the parts
// one after the other.

#pragma once

#include "machine.cuh"

constexpr int WARP = 32;
constexpr int CELL_ROWS = 16;
constexpr int CELL_TOKENS = 8;
constexpr int CELL_COLUMNS = 32;

// The most parts of a row that are summed up by themselves.
constexpr int PARTS = 4;

// Cells of a part, a multiple of four; the last may have fewer.
__device__ __forceinline__ int part_cells(int cells) { return (cells + 4 * PARTS - 1) / (4 * PARTS) * 4; }

// 4 words of a lane for each cell of activations: the columns 2t and 2t + 1 behind 0, 8, 16 and 24.
constexpr int LANE_WORDS = 4;

__device__ __forceinline__ int lane_id() { return threadIdx.x % WARP; }

// Activations that a kernel writes for the next matrix.
struct Activations {
    uint32_t* words;
    // Cells of a row.
    int cells;
    // Whether they lie in core matrices; else lane by lane.
    int cores;

    // The word of the columns `column` and `column + 1`, the first of them even, of `token`.
    __device__ __forceinline__ uint32_t& word(int token, int column) const {
        const int cell = token / CELL_TOKENS * cells + column / CELL_COLUMNS;
        const int row = token % CELL_TOKENS, eight = column % CELL_COLUMNS / 8, pair = column % 8 / 2;
        const int place = cores ? (eight * CELL_TOKENS + row) * 4 + pair : (row * 4 + pair) * LANE_WORDS + eight;
        return words[static_cast<size_t>(cell) * (WARP * LANE_WORDS) + place];
    }
};

__device__ __forceinline__ float silu(float value) { return value / (1.0f + __expf(-value)); }

// The sum over a block of a multiple of 32 threads, in every thread. `partial` has room for 32.
__device__ __forceinline__ float block_sum(float value, float* partial) {
    value = warp_sum(value);
    if (lane_id() == 0) {
        partial[threadIdx.x / WARP] = value;
    }
    __syncthreads();
    const bool there = lane_id() < static_cast<int>(blockDim.x) / WARP;
    const float sum = warp_sum(there ? partial[lane_id()] : 0.0f);
    __syncthreads();
    return sum;
}
