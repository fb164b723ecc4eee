// Matrices of which a thread reads one value after the other.

#pragma once

#include "layout.cuh"

// Row by row in binary32.
struct PlainValues {
    const float* values;
    int columns;

    __device__ __forceinline__ float at(int row, int column) const {
        return values[static_cast<size_t>(row) * columns + column];
    }
};

// Bfloat16 in cells.
struct CellValues {
    const uint16_t* values;
    int cells;

    __device__ __forceinline__ float at(int row, int column) const {
        const size_t cell = static_cast<size_t>(row / CELL_ROWS) * cells + column / CELL_COLUMNS;
        const int lane = row % 8 * 4 + column % 8 / 2;
        const int word = column % 32 / 16 * 128 + lane * 4 + column % 16 / 8 * 2 + row % 16 / 8;
        const uint32_t bits = values[cell * (CELL_ROWS * CELL_COLUMNS) + word * 2 + column % 2];
        return __uint_as_float(bits << 16);
    }
};
