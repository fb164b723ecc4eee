// Matrix products for few tokens, where the time is that of reading the matrix once.
//
// A block computes a tile of 16 rows, or two, for up to 8 * TILES tokens. Its warps share the segments
// of the columns evenly; each keeps several cells of the matrix on their way while it multiplies the
// ones before. With many tokens the activations, which every block reads, outweigh the matrix: then
// two tiles of rows share them.

#include "epilogue.cuh"
#include "formats.cuh"

constexpr int row_tiles_of(int token_tiles) { return token_tiles < 4 ? 1 : 2; }

template <int TILES>
struct Sums {
    static constexpr int ROWS = row_tiles_of(TILES);
    float of[ROWS][TILES][4];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int value = 0; value < ROWS * TILES * 4; ++value) {
            of[value / (TILES * 4)][value / 4 % TILES][value % 4] = 0.0f;
        }
    }
    __device__ __forceinline__ void put(float* shared) const {
#pragma unroll
        for (int value = 0; value < ROWS * TILES * 4; ++value) {
            shared[value * WARP + lane_id()] = of[value / (TILES * 4)][value / 4 % TILES][value % 4];
        }
    }
};

// The segments of one warp: `first`, `first + step` and so on below `end`, as a run of cells.
struct Run {
    int first, step, cells_of_row, count;

    __device__ __forceinline__ Run(int first, int step, int end, int cells_of_row)
        : first(first), step(step), cells_of_row(cells_of_row), count(0) {
        for (int segment = first; segment < end; segment += step) {
            count += min(SEGMENT_CELLS, cells_of_row - segment * SEGMENT_CELLS);
        }
    }
    __device__ __forceinline__ int segment(int index) const { return first + index / SEGMENT_CELLS * step; }
    __device__ __forceinline__ int cell(int index) const {
        return segment(index) * SEGMENT_CELLS + index % SEGMENT_CELLS;
    }
};

// What a block multiplies.
struct Operands {
    // The block's rows of cells, which are `row_bytes` apart.
    const uint8_t* rows;
    size_t row_bytes;
    const uint4* input;
    int cells;
    int tokens;
};

// What a warp reads of the activations of 8 tokens for a cell; zeros for tokens that are not there.
__device__ __forceinline__ uint4 load_activations(const Operands& operands, int tile, int cell) {
    if (tile * CELL_TOKENS + lane_id() / 4 >= operands.tokens) {
        return make_uint4(0, 0, 0, 0);
    }
    return __ldg(operands.input + (static_cast<size_t>(tile) * operands.cells + cell) * WARP + lane_id());
}

// The cells of one column that are on their way; those of the activations too, where they are few
// enough to be kept.
template <class Format, int TILES>
struct Column {
    static constexpr int ROWS = row_tiles_of(TILES);
    static constexpr bool KEEPS_INPUT = TILES <= 2;
    Format of_row[ROWS];
    uint4 of_tile[KEEPS_INPUT ? TILES : 1];

    __device__ __forceinline__ void load(const Operands& operands, int cell) {
#pragma unroll
        for (int row = 0; row < ROWS; ++row) {
            const size_t place = row * operands.row_bytes + static_cast<size_t>(cell) * Format::CELL_BYTES;
            of_row[row].load(operands.rows + place, lane_id());
        }
        if (KEEPS_INPUT) {
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) {
                of_tile[tile] = load_activations(operands, tile, cell);
            }
        }
    }
    __device__ __forceinline__ uint4 activations(const Operands& operands, int tile, int cell) const {
        return KEEPS_INPUT ? of_tile[tile] : load_activations(operands, tile, cell);
    }
};

// Multiplies a warp's cells and puts the sums of each segment to its place among `shared`.
template <class Format, int TILES>
__device__ __forceinline__ void multiply(const Operands& operands, const Run& run, int segments_done,
                                         float* shared) {
    constexpr int ROWS = row_tiles_of(TILES), DEPTH = Format::DEPTH / ROWS;
    static_assert(SEGMENT_CELLS % DEPTH == 0, "segments end where rounds end");
    Column<Format, TILES> on_the_way[DEPTH];
#pragma unroll
    for (int ahead = 0; ahead < DEPTH; ++ahead) {
        if (ahead < run.count) {
            on_the_way[ahead].load(operands, run.cell(ahead));
        }
    }
    Sums<TILES> sums;
    sums.clear();
    for (int start = 0; start < run.count; start += DEPTH) {
#pragma unroll
        for (int ahead = 0; ahead < DEPTH; ++ahead) {
            const int index = start + ahead;
            if (index >= run.count) {
                break;
            }
            uint32_t a[ROWS][2][4];
#pragma unroll
            for (int row = 0; row < ROWS; ++row) {
                on_the_way[ahead].of_row[row].unpack(a[row]);
            }
            uint4 of_tile[TILES];
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) {
                of_tile[tile] = on_the_way[ahead].activations(operands, tile, run.cell(index));
            }
            if (index + DEPTH < run.count) {
                on_the_way[ahead].load(operands, run.cell(index + DEPTH));
            }
#pragma unroll
            for (int tile = 0; tile < TILES; ++tile) {
                const uint4 words = of_tile[tile];
#pragma unroll
                for (int row = 0; row < ROWS; ++row) {
                    mma_bf16(sums.of[row][tile], a[row][0], {words.x, words.y});
                    mma_bf16(sums.of[row][tile], a[row][1], {words.z, words.w});
                }
            }
        }
        // A segment is a whole number of these rounds, but for the last of a row.
        const int last = min(start + DEPTH, run.count) - 1;
        if (last % SEGMENT_CELLS == SEGMENT_CELLS - 1 || last == run.count - 1) {
            sums.put(shared + (run.segment(last) - segments_done) * ROWS * TILES * 4 * WARP);
            sums.clear();
        }
    }
}

// Where the sum of all columns for the row `row` of the block and the token `token` lies.
template <int TILES>
__device__ __forceinline__ int total_place(int token, int row) {
    const int tile = row / CELL_ROWS * TILES + token / CELL_TOKENS, column = token % CELL_TOKENS;
    const int place = row % CELL_ROWS / 8 * 2 + column % 2;
    return (tile * 4 + place) * WARP + row % 8 * 4 + column / 2;
}

// The sums of all columns for the block's rows and tokens, in shared memory, behind which `batch`
// segments have room at once.
template <class Format, int TILES>
__device__ __forceinline__ float* product(const uint8_t* matrix, const uint4* input, int cells, int tokens,
                                          int row_tiles, int batch) {
    DYNAMIC_SHARED(float, shared);
    constexpr int ROWS = row_tiles_of(TILES), OUTPUTS = ROWS * TILES * 4 * WARP;
    const int warp = threadIdx.x / WARP, warps = blockDim.x / WARP;
    const int segments = (cells + SEGMENT_CELLS - 1) / SEGMENT_CELLS;
    const size_t row_bytes = static_cast<size_t>(cells) * Format::CELL_BYTES;
    const int first_tile = blockIdx.x * ROWS;
    // Where there is no second tile the first is read again, for nobody.
    const size_t to_second = first_tile + 1 < row_tiles ? row_bytes : 0;
    const Operands operands = {matrix + first_tile * row_bytes, to_second, input, cells, tokens};
    float* of_segments = shared + OUTPUTS;
    for (int output = threadIdx.x; output < OUTPUTS; output += blockDim.x) {
        shared[output] = 0.0f;
    }
    for (int done = 0; done < segments; done += batch) {
        const int end = min(segments, done + batch);
        const Run run(done + warp, warps, end, cells);
        multiply<Format, TILES>(operands, run, done, of_segments);
        __syncthreads();
        for (int output = threadIdx.x; output < OUTPUTS; output += blockDim.x) {
            float total = shared[output];
            for (int segment = done; segment < end; ++segment) {
                total = __fadd_rn(total, of_segments[(segment - done) * OUTPUTS + output]);
            }
            shared[output] = total;
        }
        __syncthreads();
    }
    return shared;
}

template <int TILES>
__device__ __forceinline__ void store(const float* totals, int tokens, int rows, const ToRows& to) {
    constexpr int BLOCK_ROWS = row_tiles_of(TILES) * CELL_ROWS;
    for (int output = threadIdx.x; output < tokens * BLOCK_ROWS; output += blockDim.x) {
        const int token = output / BLOCK_ROWS, row = output % BLOCK_ROWS;
        const int row_of_all = blockIdx.x * BLOCK_ROWS + row;
        if (row_of_all < rows) {
            to.store(token, row_of_all, totals[total_place<TILES>(token, row)]);
        }
    }
}

// Two features at a time, of which a tile has 8.
template <int TILES>
__device__ __forceinline__ void store(const float* totals, int tokens, int rows, const ToGated& to) {
    constexpr int PAIRS = row_tiles_of(TILES) * 4;
    for (int output = threadIdx.x; output < tokens * PAIRS; output += blockDim.x) {
        const int token = output / PAIRS, of_block = output % PAIRS / 4, feature = output % 4 * 2;
        const int tile = blockIdx.x * row_tiles_of(TILES) + of_block;
        if (tile * CELL_ROWS >= rows) {
            continue;
        }
        float values[2];
        for (int next = 0; next < 2; ++next) {
            const int row = of_block * CELL_ROWS + feature + next;
            const float gate = totals[total_place<TILES>(token, row)];
            const float up = totals[total_place<TILES>(token, row + 8)];
            values[next] = to.value(tile, feature + next, gate, up);
        }
        to.output[activation_word(token, tile * 8 + feature, to.cells)] = bf16x2_of(values[0], values[1]);
    }
}

// Where `gated.output` is set the rows are gates and up projections, else `to` has the rows.
#define FEW(name, Format, TILES)                                                                      \
    extern "C" __global__ void __launch_bounds__(256)                                                 \
        linear_few_##name##_##TILES(const uint8_t* matrix, const uint4* input, int cells, int tokens, \
                                    int rows, int batch, ToRows to, ToGated gated) {                  \
        const int row_tiles = (rows + CELL_ROWS - 1) / CELL_ROWS;                                     \
        const float* totals =                                                                         \
            product<Format, TILES>(matrix, input, cells, tokens, row_tiles, batch);                   \
        if (gated.output != nullptr) {                                                                \
            store<TILES>(totals, tokens, rows, gated);                                                \
        } else {                                                                                      \
            store<TILES>(totals, tokens, rows, to);                                                   \
        }                                                                                             \
    }

#define FEW_OF_ALL_SIZES(name, ...) \
    FEW(name, __VA_ARGS__, 1)       \
    FEW(name, __VA_ARGS__, 2)       \
    FEW(name, __VA_ARGS__, 4)       \
    FEW(name, __VA_ARGS__, 8)

// One format a module, so that a node compiles for its device what its model needs.
#ifdef FORMAT
FEW_OF_ALL_SIZES(FORMAT_NAME, FORMAT)
#else
FOR_EACH_FORMAT(FEW_OF_ALL_SIZES)
#endif
