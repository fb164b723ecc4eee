// What becomes of the sums of a matrix product.

#pragma once

#include "layout.cuh"

// The output [tokens, stride] in binary32, from the column `first_row` on: sum + bias + residual,
// where there are any. The residual has the shape of the output, and may be the output itself.
struct ToRows {
    float* output;
    const float* bias;
    const float* residual;
    int stride;
    int first_row;

    __device__ __forceinline__ size_t place(int token, int row) const {
        return static_cast<size_t>(token) * stride + first_row + row;
    }
    __device__ __forceinline__ void store(int token, int row, float sum) const {
        if (bias != nullptr) {
            sum = __fadd_rn(sum, bias[first_row + row]);
        }
        if (residual != nullptr) {
            sum = __fadd_rn(sum, residual[place(token, row)]);
        }
        output[place(token, row)] = sum;
    }
    // Some of a thread's sums; `at` says of which token and row each is, and `ALL` that there are all of
    // them. What is added is read for all of them before the first is done.
    template <int COUNT, bool ALL, class At>
    __device__ __forceinline__ void store_all(float* sums, int tokens, int rows, const At& at) const {
        if (bias != nullptr) {
#pragma unroll
            for (int index = 0; index < COUNT; ++index) {
                const int2 to = at(index);
                sums[index] = __fadd_rn(sums[index], ALL || to.y < rows ? bias[first_row + to.y] : 0.0f);
            }
        }
        if (residual != nullptr) {
            float before[COUNT];
#pragma unroll
            for (int index = 0; index < COUNT; ++index) {
                const int2 to = at(index);
                const bool there = ALL || (to.x < tokens && to.y < rows);
                before[index] = there ? residual[place(to.x, to.y)] : 0.0f;
            }
#pragma unroll
            for (int index = 0; index < COUNT; ++index) {
                sums[index] = __fadd_rn(sums[index], before[index]);
            }
        }
#pragma unroll
        for (int index = 0; index < COUNT; ++index) {
            const int2 to = at(index);
            if (ALL || (to.x < tokens && to.y < rows)) {
                output[place(to.x, to.y)] = sums[index];
            }
        }
    }
};

// silu(gate) * up, as activations of the next matrix. Each tile of 16 rows has 8 of the gate's and
// behind them the 8 of the up projection that belong to them.
struct ToGated {
    Activations output;
    const float* bias;

    // For the feature `feature` behind the tile's first, of 8.
    __device__ __forceinline__ float value(int tile, int feature, float gate, float up) const {
        if (bias != nullptr) {
            gate = __fadd_rn(gate, bias[tile * CELL_ROWS + feature]);
            up = __fadd_rn(up, bias[tile * CELL_ROWS + 8 + feature]);
        }
        return __fmul_rn(silu(gate), up);
    }
};
