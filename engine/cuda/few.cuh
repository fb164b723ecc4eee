// Matrix products for few tokens, where the time is that of reading the matrix once.
//
// A block computes a tile of 16 rows, or two, for up to 8 * TILES tokens. Each of its warps takes one
// part of the columns, and keeps several cells of the matrix on their way while it multiplies the ones
// before. With many tokens the activations, which every block reads, outweigh the matrix: then two tiles
// of rows share them.
//
// Small cells for the fewest tokens go by way of shared memory, where they are on their way even before
// the activations are there: a compiler moves what is loaded to registers behind the wait for these, and
// within the loop to its end, whatever the source says. For the same reason the activations of a token
// that is alone go that way too. Large cells have enough on their way either way, and are faster without
// the detour; so are more tokens, whose activations need the room.

#pragma once

#include "epilogue.cuh"
#include "formats.cuh"

constexpr int row_tiles_of(int token_tiles) { return token_tiles < 4 ? 1 : 2; }

// Cells of bfloat16 and binary16; all others are smaller.
constexpr int LARGE_CELL_BYTES = 1024;

// How many blocks are to have room on a multiprocessor, so that some read while others end.
template <class Format>
constexpr int blocks_of(int token_tiles) {
    // Of cells that are small, more warps have to be at work.
    constexpr int OF_ONE_TILE = Format::CELL_BYTES < LARGE_CELL_BYTES ? 5 : 4;
    return token_tiles == 1 ? OF_ONE_TILE : token_tiles < 8 ? 3 : 2;
}

// Whether cells go by way of shared memory.
template <class Format>
constexpr bool is_shared(int token_tiles) {
    return Format::CELL_BYTES < LARGE_CELL_BYTES && token_tiles <= 2;
}

// From so many blocks on the next kernel may begin at once, beside the last of them. Of fewer, those of the
// next would lie unevenly among them, and the multiprocessor with most of them would be waited for.
constexpr unsigned EARLY_BLOCKS = 1024;

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

// A lane's activations of tokens that follow each other.
struct InOrder {
    // Those of the first 8 tokens.
    const uint4* first;
    // From 8 tokens to the next.
    size_t tile_stride;

    __device__ __forceinline__ const uint4* of_tile(const uint4* of_first, int tile) const {
        return of_first + tile * tile_stride;
    }
};

// A lane's activations of tokens that lie anywhere.
template <int TILES>
struct Scattered {
    const uint4* first;
    // From there to its token of each 8.
    uint32_t distances[TILES];

    __device__ __forceinline__ const uint4* of_tile(const uint4* of_first, int tile) const {
        return of_first + distances[tile];
    }
};

// What a warp reads: its part of the block's rows of cells, and of the activations.
template <class Inputs>
struct Stream {
    const uint8_t* matrix;
    // From a row of cells to the next.
    size_t row_bytes;
    Inputs input;
};

// The cells that are on their way, in registers. Of tokens that are not there anything is read that lies
// where they would, for nobody.
template <class Format, int TILES>
struct Ahead {
    static constexpr int ROWS = row_tiles_of(TILES);
    static constexpr int DEPTH = Format::DEPTH / ROWS;
    static constexpr int INPUT_DEPTH = TILES <= 2 ? 4 : 1;
    static_assert(DEPTH % INPUT_DEPTH == 0, "a round begins where the last one did");
    Format of_row[ROWS][DEPTH];
    uint4 of_tile[TILES][INPUT_DEPTH];

    template <class Inputs>
    __device__ __forceinline__ void load_matrix(const Stream<Inputs>& stream, int to, int cell) {
#pragma unroll
        for (int row = 0; row < ROWS; ++row) {
            const uint8_t* rows = stream.matrix + row * stream.row_bytes;
            of_row[row][to].template load<FromMemory>(rows + cell * Format::CELL_BYTES, lane_id());
        }
    }
    template <class Inputs>
    __device__ __forceinline__ void load_input(const Stream<Inputs>& stream, int tile, int to, int cell) {
        of_tile[tile][to] = load_changed(stream.input.of_tile(stream.input.first, tile) + cell * WARP);
    }
};

// Multiplies the next cells, as many as are on their way, and begins to fetch those behind them. `left`
// cells there are from here on; `ALL` says that they are at least twice as many.
template <bool ALL, class Format, int TILES, class Inputs>
__device__ __forceinline__ void multiply_next(const Stream<Inputs>& stream, int left, Ahead<Format, TILES>& ahead,
                                              Sums<TILES>& sums) {
    using Cells = Ahead<Format, TILES>;
#pragma unroll
    for (int cell = 0; cell < Cells::DEPTH; ++cell) {
        if (!ALL && cell >= left) {
            break;
        }
        uint32_t a[Cells::ROWS][2][4];
#pragma unroll
        for (int row = 0; row < Cells::ROWS; ++row) {
            ahead.of_row[row][cell].unpack(a[row]);
        }
        if (ALL || cell + Cells::DEPTH < left) {
            ahead.load_matrix(stream, cell, cell + Cells::DEPTH);
        }
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
            constexpr int INPUT_DEPTH = Cells::INPUT_DEPTH;
            const uint4 words = ahead.of_tile[tile][cell % INPUT_DEPTH];
            if (ALL || cell + INPUT_DEPTH < left) {
                ahead.load_input(stream, tile, cell % INPUT_DEPTH, cell + INPUT_DEPTH);
            }
#pragma unroll
            for (int row = 0; row < Cells::ROWS; ++row) {
                mma_bf16(sums.of[row][tile], a[row][0], {words.x, words.y});
                mma_bf16(sums.of[row][tile], a[row][1], {words.z, words.w});
            }
        }
    }
}

// Multiplies a warp's `count` cells, by way of registers.
template <class Format, int TILES, class Inputs>
__device__ __forceinline__ void multiply_ahead(Stream<Inputs> stream, int count, Sums<TILES>& sums) {
    using Cells = Ahead<Format, TILES>;
    Cells ahead;
#pragma unroll
    for (int cell = 0; cell < Cells::DEPTH; ++cell) {
        if (cell < count) {
            ahead.load_matrix(stream, cell, cell);
        }
    }
    grid_wait();
#pragma unroll
    for (int cell = 0; cell < Cells::INPUT_DEPTH; ++cell) {
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
            if (cell < count) {
                ahead.load_input(stream, tile, cell, cell);
            }
        }
    }
    for (; count >= 2 * Cells::DEPTH; count -= Cells::DEPTH) {
        multiply_next<true>(stream, count, ahead, sums);
        stream.matrix += Cells::DEPTH * Format::CELL_BYTES;
        stream.input.first += Cells::DEPTH * WARP;
    }
    for (; count > 0; count -= Cells::DEPTH) {
        multiply_next<false>(stream, count, ahead, sums);
        stream.matrix += Cells::DEPTH * Format::CELL_BYTES;
        stream.input.first += Cells::DEPTH * WARP;
    }
}

// The cells of one tile of rows that are on their way, some stages of them, in shared memory; behind those
// of a stage are their activations where a token is alone.
template <class Format, bool ALONE>
struct Ring {
    // Of larger cells fewer are enough.
    static constexpr int STAGES = Format::CELL_BYTES > 384 ? 2 : 3;
    static constexpr int CELLS = Format::DEPTH;
    static constexpr int MATRIX_BYTES = CELLS * Format::CELL_BYTES;
    // A token's share of a cell is four pieces.
    static constexpr int PIECES = 4;
    static constexpr int STAGE_BYTES = MATRIX_BYTES + (ALONE ? CELLS * PIECES * 16 : 0);
    static constexpr int BYTES = STAGES * STAGE_BYTES;
    static_assert(CELLS * PIECES == WARP, "a lane fetches a piece");
    uint8_t* shared;

    // Begins to fetch the cells of a stage, which are at `from` and as many as there are of `left`, into
    // the place `place`.
    __device__ __forceinline__ void fetch(const uint8_t* from, int place, int left) const {
        if (left >= CELLS) {
            fetch_bytes(from, place, MATRIX_BYTES);
        } else if (left > 0) {
            fetch_bytes(from, place, left * Format::CELL_BYTES);
        }
    }
    __device__ __forceinline__ void fetch_bytes(const uint8_t* from, int place, int bytes) const {
        const int own = lane_id() * 16;
        uint8_t* to = shared + place * STAGE_BYTES + own;
#pragma unroll
        for (int start = 0; start < MATRIX_BYTES; start += WARP * 16) {
            if (start + WARP * 16 <= bytes || start + own < bytes) {
                copy_async_16(to + start, from + own + start);
            }
        }
    }
    // Begins to fetch as many stages as there is room for, of `left` cells; says where the next stage is.
    __device__ __forceinline__ const uint8_t* begin(const uint8_t* from, int left) const {
#pragma unroll
        for (int stage = 0; stage < STAGES; ++stage) {
            fetch(from, stage, left - stage * CELLS);
            copy_async_commit();
            from += MATRIX_BYTES;
        }
        return from;
    }
    // Begins to fetch the activations of a stage's cells; `from` is what this lane fetches of them.
    __device__ __forceinline__ void fetch_input(const uint4* from, int place, int left) const {
        if (lane_id() / PIECES < left) {
            copy_async_16(shared + place * STAGE_BYTES + MATRIX_BYTES + lane_id() * 16, from);
        }
    }
    __device__ __forceinline__ const uint8_t* cell(int place, int cell) const {
        return shared + place * STAGE_BYTES + cell * Format::CELL_BYTES;
    }
    // What the lane multiplies a cell with.
    __device__ __forceinline__ uint4 input(int place, int cell) const {
        const uint8_t* inputs = shared + place * STAGE_BYTES + MATRIX_BYTES;
        return reinterpret_cast<const uint4*>(inputs)[cell * PIECES + lane_id() % PIECES];
    }
};

// Multiplies a cell with `inputs`, one for each 8 tokens.
template <class Format, int TILES>
__device__ __forceinline__ void multiply_cell(const uint8_t* cell, const uint4 (&inputs)[TILES], Sums<TILES>& sums) {
    Format packed;
    packed.template load<FromShared>(cell, lane_id());
    uint32_t a[2][4];
    packed.unpack(a);
#pragma unroll
    for (int tile = 0; tile < TILES; ++tile) {
        mma_bf16(sums.of[0][tile], a[0], {inputs[tile].x, inputs[tile].y});
        mma_bf16(sums.of[0][tile], a[1], {inputs[tile].z, inputs[tile].w});
    }
}

// Multiplies a warp's `count` cells, by way of shared memory that is its own.
template <class Format, int TILES, class Inputs>
__device__ __forceinline__ void multiply_shared(const Stream<Inputs>& stream, int count, uint8_t* shared,
                                                Sums<TILES>& sums) {
    using Cells = Ring<Format, false>;
    // Activations that are on their way to registers, for so many cells.
    constexpr int AHEAD = Cells::CELLS / TILES;
    const Cells ring = {shared};
    const uint8_t* matrix = ring.begin(stream.matrix, count);
    grid_wait();
    const auto load = [&](const uint4* from, uint4(&to)[TILES]) {
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
            to[tile] = load_changed(stream.input.of_tile(from, tile));
        }
    };
    uint4 inputs[AHEAD][TILES];
    const uint4* input = stream.input.first;
    if (count >= Cells::CELLS) {
#pragma unroll
        for (int cell = 0; cell < AHEAD; ++cell) {
            load(input + cell * WARP, inputs[cell]);
        }
    }
    int place = 0;
    for (; count >= Cells::CELLS; count -= Cells::CELLS) {
        // Where the next stage is not whole the same ones are read again, for nobody.
        const uint4* next = count >= 2 * Cells::CELLS ? input + Cells::CELLS * WARP : input;
        copy_async_wait<Cells::STAGES - 1>();
        __syncwarp();
#pragma unroll
        for (int cell = 0; cell < Cells::CELLS; ++cell) {
            multiply_cell<Format, TILES>(ring.cell(place, cell), inputs[cell % AHEAD], sums);
            const int later = cell + AHEAD;
            const uint4* from = later < Cells::CELLS ? input + later * WARP : next + (later - Cells::CELLS) * WARP;
            load(from, inputs[cell % AHEAD]);
        }
        __syncwarp();
        ring.fetch(matrix, place, count - Cells::STAGES * Cells::CELLS);
        copy_async_commit();
        matrix += Cells::MATRIX_BYTES;
        input += Cells::CELLS * WARP;
        place = place + 1 == Cells::STAGES ? 0 : place + 1;
    }
    copy_async_wait<Cells::STAGES - 1>();
    __syncwarp();
    for (int cell = 0; cell < count; ++cell) {
        load(input + cell * WARP, inputs[0]);
        multiply_cell<Format, TILES>(ring.cell(place, cell), inputs[0], sums);
    }
}

// The same for a token that is alone, whose activations go by way of shared memory as well.
template <class Format, class Inputs>
__device__ __forceinline__ void multiply_alone(const Stream<Inputs>& stream, int count, uint8_t* shared,
                                               Sums<1>& sums) {
    using Cells = Ring<Format, true>;
    const Cells ring = {shared};
    const uint8_t* matrix = ring.begin(stream.matrix, count);
    const uint4* input = stream.input.of_tile(stream.input.first, 0) + lane_id() / Cells::PIECES * WARP;
    grid_wait();
#pragma unroll
    for (int stage = 0; stage < Cells::STAGES; ++stage) {
        ring.fetch_input(input, stage, count - stage * Cells::CELLS);
        copy_async_commit();
        input += Cells::CELLS * WARP;
    }
    const auto multiply = [&](int place, int cell) {
        const uint4 inputs[1] = {ring.input(place, cell)};
        multiply_cell<Format, 1>(ring.cell(place, cell), inputs, sums);
    };
    int place = 0;
    for (; count >= Cells::CELLS; count -= Cells::CELLS) {
        copy_async_wait<Cells::STAGES - 1>();
        __syncwarp();
#pragma unroll
        for (int cell = 0; cell < Cells::CELLS; ++cell) {
            multiply(place, cell);
        }
        __syncwarp();
        ring.fetch(matrix, place, count - Cells::STAGES * Cells::CELLS);
        ring.fetch_input(input, place, count - Cells::STAGES * Cells::CELLS);
        copy_async_commit();
        matrix += Cells::MATRIX_BYTES;
        input += Cells::CELLS * WARP;
        place = place + 1 == Cells::STAGES ? 0 : place + 1;
    }
    copy_async_wait<Cells::STAGES - 1>();
    __syncwarp();
    for (int cell = 0; cell < count; ++cell) {
        multiply(place, cell);
    }
}

// The sums of all columns for the block's rows and tokens: of each part in shared memory.
template <int TILES>
struct Totals {
    static constexpr int OUTPUTS = row_tiles_of(TILES) * TILES * 4 * WARP;
    const float* of_parts;
    // From a part to the next.
    int stride;
    int parts;
    // What they are multiplied with, a power of two.
    float factor;

    // For the row `row` of the block and the token `token`.
    __device__ __forceinline__ float at(int token, int row) const {
        const int tile = row / CELL_ROWS * TILES + token / CELL_TOKENS, column = token % CELL_TOKENS;
        const int place = (tile * 4 + row % CELL_ROWS / 8 * 2 + column % 2) * WARP + row % 8 * 4 + column / 2;
        float total = 0.0f;
#pragma unroll
        for (int part = 0; part < PARTS; ++part) {
            total = part < parts ? __fadd_rn(total, of_parts[part * stride + place]) : total;
        }
        return __fmul_rn(total, factor);
    }
};

// Shared memory of a warp: its cells, and in the end its sums.
template <class Format, bool ALONE>
constexpr int warp_bytes(int token_tiles) {
    const int of_sums = row_tiles_of(token_tiles) * token_tiles * 4 * WARP * 4;
    if constexpr (Format::CELL_BYTES < LARGE_CELL_BYTES) {
        const int of_cells = Ring<Format, ALONE>::BYTES;
        return is_shared<Format>(token_tiles) && of_cells > of_sums ? of_cells : of_sums;
    }
    return of_sums;
}

// Activations of tokens that follow each other, as they lie.
struct Following {
    using Inputs = InOrder;
    const uint4* words;

    // Those that a lane multiplies with whose first token is `token`, from `start` on.
    __device__ __forceinline__ Inputs of_lane(size_t start, int token, int cells) const {
        return {words + start + token * 4 + lane_id() % 4, static_cast<size_t>(cells) * WARP};
    }
};

// The product of one block, number `row_block` of those for the same tokens. `ALONE` says that there is one
// token, and `blocks` how many the kernel has.
template <class Format, int TILES, bool ALONE, class Tokens>
__device__ __forceinline__ Totals<TILES> product(const uint8_t* matrix, const Tokens& input, int cells, int tokens,
                                                 int row_tiles, int row_block, unsigned blocks) {
    DYNAMIC_SHARED(uint4, shared);
    constexpr int ROWS = row_tiles_of(TILES);
    const int warp = threadIdx.x / WARP, of_part = part_cells(cells);
    const size_t row_bytes = static_cast<size_t>(cells) * Format::CELL_BYTES;
    const int first_tile = row_block * ROWS, first_cell = warp * of_part;
    // Lanes of one token read the same where there is no other.
    const int token = ALONE ? 0 : TILES == 1 ? min(lane_id() / 4, tokens - 1) : lane_id() / 4;
    Stream<typename Tokens::Inputs> stream;
    stream.matrix = matrix + first_tile * row_bytes + static_cast<size_t>(first_cell) * Format::CELL_BYTES;
    // Where there is no second tile the first is read again, for nobody.
    stream.row_bytes = first_tile + 1 < row_tiles ? row_bytes : 0;
    stream.input = input.of_lane(static_cast<size_t>(first_cell) * WARP, token, cells);
    if (blocks >= EARLY_BLOCKS) {
        grid_release();
    }
    Sums<TILES> sums;
    sums.clear();
    const int count = min(of_part, cells - first_cell);
    constexpr int BYTES = warp_bytes<Format, ALONE>(TILES);
    uint8_t* own = reinterpret_cast<uint8_t*>(shared) + warp * BYTES;
    if constexpr (is_shared<Format>(TILES) && ALONE) {
        multiply_alone<Format>(stream, count, own, sums);
    } else if constexpr (is_shared<Format>(TILES)) {
        multiply_shared<Format, TILES>(stream, count, own, sums);
    } else {
        multiply_ahead<Format, TILES>(stream, count, sums);
    }
    grid_release();
    // What was there before, the warp has read.
    sums.put(reinterpret_cast<float*>(own));
    __syncthreads();
    const int parts = (cells + of_part - 1) / of_part;
    return {reinterpret_cast<const float*>(shared), BYTES / 4, parts, Format::IS_WHOLE ? 1.0f : WHOLE};
}

template <int TILES>
__device__ __forceinline__ void store(const Totals<TILES>& totals, int row_block, int tokens, int rows,
                                      const ToRows& to) {
    constexpr int BLOCK_ROWS = row_tiles_of(TILES) * CELL_ROWS;
    for (int output = threadIdx.x; output < tokens * BLOCK_ROWS; output += blockDim.x) {
        const int token = output / BLOCK_ROWS, row = output % BLOCK_ROWS;
        const int row_of_all = row_block * BLOCK_ROWS + row;
        if (row_of_all < rows) {
            to.store(token, row_of_all, totals.at(token, row));
        }
    }
}

// Two features at a time, of which a tile has 8.
template <int TILES>
__device__ __forceinline__ void store(const Totals<TILES>& totals, int row_block, int tokens, int rows,
                                      const ToGated& to) {
    constexpr int PAIRS = row_tiles_of(TILES) * 4;
    for (int output = threadIdx.x; output < tokens * PAIRS; output += blockDim.x) {
        const int token = output / PAIRS, of_block = output % PAIRS / 4, feature = output % 4 * 2;
        const int tile = row_block * row_tiles_of(TILES) + of_block;
        if (tile * CELL_ROWS >= rows) {
            continue;
        }
        float values[2];
        for (int next = 0; next < 2; ++next) {
            const int row = of_block * CELL_ROWS + feature + next;
            const float gate = totals.at(token, row);
            const float up = totals.at(token, row + 8);
            values[next] = to.value(tile, feature + next, gate, up);
        }
        to.output.word(token, tile * 8 + feature) = bf16x2_of(values[0], values[1]);
    }
}
