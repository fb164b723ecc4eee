// Matrix products of experts, by few.cuh: a block multiplies rows of one expert's matrix with a tile of its
// tokens.
//
// The matrices lie one behind the other. Of a pass of one token there are as many tiles as it has experts;
// of others as many are launched as there can be, and those for nobody end at once, so that the host need not
// know. Blocks for all tiles of the same rows begin together: those of one expert find its matrix in the
// second-level cache.

#include "experts.cuh"
#include "few.cuh"

// Activations of a tile of rows: of their tokens, or where `tokens` is null of these rows themselves.
template <int TILES>
struct OfRows {
    using Inputs = Scattered<TILES>;
    const uint4* words;
    const int* tokens;
    RowTile tile;

    // Of rows that are not there the last is read again, for nobody.
    __device__ __forceinline__ Inputs of_lane(size_t start, int, int cells) const {
        Inputs inputs;
        inputs.first = words + start + lane_id() % 4;
#pragma unroll
        for (int eight = 0; eight < TILES; ++eight) {
            const int row = min(eight * CELL_TOKENS + lane_id() / 4, rows_of(tile) - 1);
            const int place = tokens != nullptr ? tokens[first_of(tile) + row] : padded_of(tile) + row;
            inputs.distances[eight] = place / CELL_TOKENS * cells * WARP + place % CELL_TOKENS * 4;
        }
        return inputs;
    }
};

// Where `gated` has words the rows of a matrix are gates and up projections, which are multiplied with those
// of `tokens`; else they are of the down projection, whose inputs lie as the gated features do.
template <class Format, int TILES, bool ALONE>
__device__ __forceinline__ void multiply_tile(const uint8_t* matrices, const uint4* input, int cells, int rows,
                                              const RowTile* tiles, const int* tokens, float* output,
                                              ToGated gated) {
    grid_wait();
    const RowTile tile = tiles[blockIdx.x];
    const int count = ALONE ? 1 : rows_of(tile);
    if (count == 0) {
        return;
    }
    const int row_tiles = (rows + CELL_ROWS - 1) / CELL_ROWS, row_block = blockIdx.y;
    const size_t expert_bytes = static_cast<size_t>(row_tiles) * cells * Format::CELL_BYTES;
    const uint8_t* matrix = matrices + expert_of(tile) * expert_bytes;
    const bool is_gated = gated.output.words != nullptr;
    const OfRows<TILES> of_rows = {input, is_gated ? tokens : nullptr, tile};
    const auto totals = product<Format, TILES, ALONE>(matrix, of_rows, cells, count, row_tiles, row_block,
                                                      gridDim.x * gridDim.y);
    if (is_gated) {
        gated.output.words += static_cast<size_t>(padded_of(tile) / CELL_TOKENS) * gated.output.cells * WARP * LANE_WORDS;
        store<TILES>(totals, row_block, count, rows, gated);
    } else {
        const ToRows to = {output + static_cast<size_t>(first_of(tile)) * rows, nullptr, nullptr, rows, 0};
        store<TILES>(totals, row_block, count, rows, to);
    }
}

#define EXPERTS(name, size, Format, TILES, ALONE)                                                           \
    extern "C" __global__ void __launch_bounds__(PARTS* WARP, blocks_of<Format>(TILES))                    \
        experts_few_##name##_##size(const uint8_t* matrices, const uint4* input, int cells, int rows,       \
                                    const RowTile* tiles, const int* tokens, float* output, ToGated gated) { \
        multiply_tile<Format, TILES, ALONE>(matrices, input, cells, rows, tiles, tokens, output, gated);    \
    }

#define EXPERTS_OF_ALL_SIZES(name, Format) \
    EXPERTS(name, alone, Format, 1, true)  \
    EXPERTS(name, 1, Format, 1, false)     \
    EXPERTS(name, 4, Format, 4, false)     \
    EXPERTS(name, 8, Format, 8, false)

// One format a module, as of linear_few.cu.
#ifdef FORMAT
EXPERTS_OF_ALL_SIZES(FORMAT_NAME, FORMAT)
#else
FOR_EACH_FORMAT(EXPERTS_OF_ALL_SIZES)
#endif
