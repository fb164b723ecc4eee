// Matrix products for few tokens: few.cuh, for tokens that follow each other.

#include "few.cuh"

// Where `gated` has words the rows are gates and up projections, else `to` has the rows.
#define FEW(name, size, Format, TILES, ALONE)                                                           \
    extern "C" __global__ void __launch_bounds__(PARTS* WARP, blocks_of<Format>(TILES))                \
        linear_few_##name##_##size(const uint8_t* matrix, const uint4* input, int cells, int some,      \
                                   int rows, ToRows to, ToGated gated) {                                \
        const int row_tiles = (rows + CELL_ROWS - 1) / CELL_ROWS, tokens = ALONE ? 1 : some;            \
        const int row_block = blockIdx.x;                                                               \
        const auto totals = product<Format, TILES, ALONE>(matrix, Following{input}, cells, tokens,      \
                                                          row_tiles, row_block, gridDim.x);             \
        if (gated.output.words != nullptr) {                                                            \
            store<TILES>(totals, row_block, tokens, rows, gated);                                       \
        } else {                                                                                        \
            store<TILES>(totals, row_block, tokens, rows, to);                                          \
        }                                                                                               \
    }

#define FEW_OF_ALL_SIZES(name, Format) \
    FEW(name, alone, Format, 1, true)  \
    FEW(name, 1, Format, 1, false)     \
    FEW(name, 2, Format, 2, false)     \
    FEW(name, 4, Format, 4, false)     \
    FEW(name, 8, Format, 8, false)

// One format a module, so that a node compiles for its device what its model needs.
#ifdef FORMAT
FEW_OF_ALL_SIZES(FORMAT_NAME, FORMAT)
#else
FOR_EACH_FORMAT(FEW_OF_ALL_SIZES)
#endif
