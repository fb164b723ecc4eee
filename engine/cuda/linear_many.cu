// Matrix products for many tokens, where the time is that of the matrix units.
//
// Cells of bfloat16 pass through shared memory in stages, and each warp of a block has 64 rows and 64
// tokens of them. Quantized matrices are first made into such cells, some thousand rows at a time:
// the values are those that linear_few.cu makes, and so are the sums.

#include "epilogue.cuh"
#include "formats.cuh"

constexpr int WARP_ROW_TILES = 4;
constexpr int WARP_TOKEN_TILES = 8;

// How a block is made up: its warps along the rows and along the tokens. What it reads of both for
// each product is the less the larger it is; what fits is a matter of the device.
template <int WARPS_DOWN, int WARPS_ACROSS, int STAGE_COUNT>
struct Blocking {
    static constexpr int DOWN = WARPS_DOWN;
    static constexpr int STAGES = STAGE_COUNT;
    static constexpr int THREADS = WARPS_DOWN * WARPS_ACROSS * WARP;
    static constexpr int ROW_TILES = WARPS_DOWN * WARP_ROW_TILES;
    static constexpr int TOKEN_TILES = WARPS_ACROSS * WARP_TOKEN_TILES;
    static constexpr int MATRIX_CHUNKS = ROW_TILES * 2 * WARP;
    static constexpr int STAGE_CHUNKS = MATRIX_CHUNKS + TOKEN_TILES * WARP;
    static constexpr int FETCHES = STAGE_CHUNKS / THREADS;
    static constexpr int TILE_SUMS = WARP_ROW_TILES * WARP_TOKEN_TILES;
};

// 256 rows and 128 tokens, in 200 KiB of shared memory; or 128 of both, in 96 KiB.
using Wide = Blocking<4, 2, 3>;
using Narrow = Blocking<2, 2, 2>;

using Tile = float[WARP_ROW_TILES][WARP_TOKEN_TILES][4];

// The part of a product that a block computes, and what this thread fetches of each stage.
template <class B>
struct Work {
    const uint4* matrix;
    const uint4* input;
    int cells;
    int first_row_tile;
    int first_token_tile;
    // From the cells of a column to those of the next are 2 * WARP pieces of 16 bytes of the matrix,
    // and WARP of the activations.
    uint32_t places[B::FETCHES];

    // Blocks that follow each other share what they read: 8 rows of blocks at a time, so that it
    // stays in the second-level cache. Tiles that are not there are read as the last one, for nobody.
    __device__ __forceinline__ Work(const uint4* matrix, const uint4* input, int cells, int row_tiles, int tokens)
        : matrix(matrix), input(input), cells(cells) {
        constexpr int TOGETHER = 8;
        const int token_tiles = (tokens + CELL_TOKENS - 1) / CELL_TOKENS;
        const int wide = (token_tiles + B::TOKEN_TILES - 1) / B::TOKEN_TILES;
        const int high = (row_tiles + B::ROW_TILES - 1) / B::ROW_TILES;
        const int band = blockIdx.x / (TOGETHER * wide), within = blockIdx.x % (TOGETHER * wide);
        const int rows_of_band = min(TOGETHER, high - band * TOGETHER);
        first_row_tile = (band * TOGETHER + within % rows_of_band) * B::ROW_TILES;
        first_token_tile = within / rows_of_band * B::TOKEN_TILES;
#pragma unroll
        for (int fetch = 0; fetch < B::FETCHES; ++fetch) {
            const int chunk = fetch * B::THREADS + threadIdx.x;
            if (fetch * B::THREADS < B::MATRIX_CHUNKS) {
                const int tile = min(first_row_tile + chunk / (2 * WARP), row_tiles - 1);
                places[fetch] = tile * cells * 2 * WARP + chunk % (2 * WARP);
            } else {
                const int tile = min(first_token_tile + (chunk - B::MATRIX_CHUNKS) / WARP, token_tiles - 1);
                places[fetch] = tile * cells * WARP + chunk % WARP;
            }
        }
    }

    // Begins to fetch the cells of column `cell`, if there is one; a group is committed all the same.
    __device__ __forceinline__ void fetch(uint4* stages, int cell) const {
        if (cell < cells) {
            uint4* stage = stages + cell % B::STAGES * B::STAGE_CHUNKS + threadIdx.x;
#pragma unroll
            for (int fetch = 0; fetch < B::FETCHES; ++fetch) {
                const bool of_matrix = fetch * B::THREADS < B::MATRIX_CHUNKS;
                const uint4* from = (of_matrix ? matrix : input) + places[fetch];
                copy_async_16(stage + fetch * B::THREADS, from + cell * (of_matrix ? 2 * WARP : WARP));
            }
        }
        copy_async_commit();
    }

    __device__ __forceinline__ int row_tile() const {
        return first_row_tile + threadIdx.x / WARP % B::DOWN * WARP_ROW_TILES;
    }
    __device__ __forceinline__ int token_tile() const {
        return first_token_tile + threadIdx.x / WARP / B::DOWN * WARP_TOKEN_TILES;
    }
};

// What the warp has of its rows for one half of a stage.
struct Rows {
    uint32_t of[WARP_ROW_TILES][4];

    __device__ __forceinline__ void load(const uint4* rows, int half) {
#pragma unroll
        for (int row = 0; row < WARP_ROW_TILES; ++row) {
            const uint4 words = rows[(row * 2 + half) * WARP];
            of[row][0] = words.x;
            of[row][1] = words.y;
            of[row][2] = words.z;
            of[row][3] = words.w;
        }
    }
    __device__ __forceinline__ void multiply(int token, uint32_t low, uint32_t high, Tile& sums) const {
        const uint32_t b[2] = {low, high};
#pragma unroll
        for (int row = 0; row < WARP_ROW_TILES; ++row) {
            mma_bf16(sums[row][token], of[row], b);
        }
    }
};

__device__ __forceinline__ void clear(Tile& sums) {
#pragma unroll
    for (int row = 0; row < WARP_ROW_TILES; ++row) {
#pragma unroll
        for (int token = 0; token < WARP_TOKEN_TILES; ++token) {
#pragma unroll
            for (int place = 0; place < 4; ++place) {
                sums[row][token][place] = 0.0f;
            }
        }
    }
}

// Adds to the sums of a part those of the parts before it, which this thread keeps in shared
// memory; `first` says that there are none.
template <class B>
__device__ __forceinline__ void add_totals(const float4* totals, bool first, Tile& sums) {
#pragma unroll
    for (int tile = 0; tile < B::TILE_SUMS; ++tile) {
        float(&of_tile)[4] = sums[tile / WARP_TOKEN_TILES][tile % WARP_TOKEN_TILES];
        float4 before = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (!first) {
            before = totals[tile * B::THREADS];
        }
        of_tile[0] = __fadd_rn(before.x, of_tile[0]);
        of_tile[1] = __fadd_rn(before.y, of_tile[1]);
        of_tile[2] = __fadd_rn(before.z, of_tile[2]);
        of_tile[3] = __fadd_rn(before.w, of_tile[3]);
    }
}

template <class B>
__device__ __forceinline__ void keep_totals(float4* totals, const Tile& sums) {
#pragma unroll
    for (int tile = 0; tile < B::TILE_SUMS; ++tile) {
        const float(&of_tile)[4] = sums[tile / WARP_TOKEN_TILES][tile % WARP_TOKEN_TILES];
        totals[tile * B::THREADS] = make_float4(of_tile[0], of_tile[1], of_tile[2], of_tile[3]);
    }
}

// The sums over all columns for the warp's rows and tokens.
//
// What is multiplied next is on its way from shared memory to registers while the matrix unit works:
// the second half of a stage during its first half, the first half of the next stage during its
// second. Between them the stage is empty, and is filled anew.
template <class B>
__device__ __forceinline__ void product(const Work<B>& work, Tile& sums) {
    DYNAMIC_SHARED(uint4, stages);
    float4* totals = reinterpret_cast<float4*>(stages + B::STAGES * B::STAGE_CHUNKS) + threadIdx.x;
    const uint4* rows = stages + (work.row_tile() - work.first_row_tile) * 2 * WARP + lane_id();
    const uint4* tokens =
        stages + B::MATRIX_CHUNKS + (work.token_tile() - work.first_token_tile) * WARP + lane_id();
    clear(sums);
#pragma unroll
    for (int cell = 0; cell < B::STAGES; ++cell) {
        work.fetch(stages, cell);
    }
    copy_async_wait<B::STAGES - 1>();
    __syncthreads();
    Rows first, second;
    uint4 of_tokens[WARP_TOKEN_TILES];
    first.load(rows, 0);
#pragma unroll
    for (int token = 0; token < WARP_TOKEN_TILES; ++token) {
        of_tokens[token] = tokens[token * WARP];
    }
    const int of_part = part_cells(work.cells);
    int left = of_part;
    for (int cell = 0; cell < work.cells; ++cell) {
        second.load(rows + cell % B::STAGES * B::STAGE_CHUNKS, 1);
#pragma unroll
        for (int token = 0; token < WARP_TOKEN_TILES; ++token) {
            first.multiply(token, of_tokens[token].x, of_tokens[token].y, sums);
        }
        copy_async_wait<B::STAGES - 2>();
        // All have what was fetched for the next cell, and all that they need of this one.
        __syncthreads();
        work.fetch(stages, cell + B::STAGES);
        const int next = (cell + 1) % B::STAGES * B::STAGE_CHUNKS;
        first.load(rows + next, 0);
#pragma unroll
        for (int token = 0; token < WARP_TOKEN_TILES; ++token) {
            second.multiply(token, of_tokens[token].z, of_tokens[token].w, sums);
            of_tokens[token] = tokens[next + token * WARP];
        }
        if (--left == 0 || cell == work.cells - 1) {
            add_totals<B>(totals, cell < of_part, sums);
            if (cell < work.cells - 1) {
                keep_totals<B>(totals, sums);
                clear(sums);
            }
            left = of_part;
        }
    }
}

template <class B>
__device__ __forceinline__ void linear(const uint4* matrix, const uint4* input, int cells, int tokens,
                                       int rows, const ToRows& to) {
    grid_release();
    grid_wait();
    const Work<B> work(matrix, input, cells, (rows + CELL_ROWS - 1) / CELL_ROWS, tokens);
    Tile sums;
    product(work, sums);
    const int lane = lane_id();
#pragma unroll
    for (int token = 0; token < WARP_TOKEN_TILES; ++token) {
        float of_token[WARP_ROW_TILES * 4];
#pragma unroll
        for (int sum = 0; sum < WARP_ROW_TILES * 4; ++sum) {
            of_token[sum] = sums[sum / 4][token][sum % 4];
        }
        to.store_all<WARP_ROW_TILES * 4, false>(of_token, tokens, rows, [&](int sum) {
            return make_int2((work.token_tile() + token) * CELL_TOKENS + lane % 4 * 2 + sum % 2,
                             (work.row_tile() + sum / 4) * CELL_ROWS + lane / 4 + sum % 4 / 2 * 8);
        });
    }
}

// The warp's 4 tiles of rows are 32 features: a cell of the output, and a lane has 4 words of it once
// the neighbours have exchanged features for tokens. `first_tile` is that of the matrix's rows among
// those of all features.
template <class B>
__device__ __forceinline__ void gated(const uint4* matrix, const uint4* input, int cells, int tokens,
                                      int row_tiles, int first_tile, const ToGated& to) {
    grid_release();
    grid_wait();
    const Work<B> work(matrix, input, cells, row_tiles, tokens);
    Tile sums;
    product(work, sums);
    const int lane = lane_id(), feature = lane / 4;
    const bool odd = feature % 2 == 1;
    const int token_tiles = (tokens + CELL_TOKENS - 1) / CELL_TOKENS;
    const int cell = (first_tile + work.row_tile()) / WARP_ROW_TILES;
#pragma unroll
    for (int token = 0; token < WARP_TOKEN_TILES; ++token) {
        uint32_t words[WARP_ROW_TILES];
#pragma unroll
        for (int row = 0; row < WARP_ROW_TILES; ++row) {
            const float(&of_tile)[4] = sums[row][token];
            const int tile = work.row_tile() + row;
            const bool there = tile < row_tiles;
            const float first = there ? to.value(first_tile + tile, feature, of_tile[0], of_tile[2]) : 0.0f;
            const float second = there ? to.value(first_tile + tile, feature, of_tile[1], of_tile[3]) : 0.0f;
            const float given = __shfl_xor_sync(0xffffffffu, odd ? first : second, 4);
            words[row] = odd ? bf16x2_of(given, second) : bf16x2_of(first, given);
        }
        if (work.token_tile() + token < token_tiles && work.row_tile() < row_tiles) {
            // Of the tokens 2t and 2t + 1 an even lane has the first, an odd one the second.
            const int slot = (lane % 4 * 2 + (odd ? 1 : 0)) * 4 + feature / 2;
            const size_t place =
                (static_cast<size_t>(work.token_tile() + token) * to.output.cells + cell) * WARP + slot;
            reinterpret_cast<uint4*>(to.output.words)[place] = make_uint4(words[0], words[1], words[2], words[3]);
        }
    }
}

#define MANY(name, B)                                                                                 \
    extern "C" __global__ void __launch_bounds__(B::THREADS)                                          \
        linear_many_##name(const uint4* matrix, const uint4* input, int cells, int tokens, int rows,  \
                           ToRows to) {                                                               \
        linear<B>(matrix, input, cells, tokens, rows, to);                                            \
    }                                                                                                 \
    extern "C" __global__ void __launch_bounds__(B::THREADS)                                          \
        gated_many_##name(const uint4* matrix, const uint4* input, int cells, int tokens,             \
                          int row_tiles, int first_tile, ToGated to) {                                \
        gated<B>(matrix, input, cells, tokens, row_tiles, first_tile, to);                            \
    }

MANY(wide, Wide)
MANY(narrow, Narrow)

// A warp makes a cell: the words of each half, lane after lane.
template <class Format>
__device__ __forceinline__ void dequantize(const uint8_t* from, uint4* to, int cells) {
    const int cell = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, lane = lane_id();
    grid_release();
    grid_wait();
    if (cell >= cells) {
        return;
    }
    Format packed;
    packed.template load<FromMemory>(from + static_cast<size_t>(cell) * Format::CELL_BYTES, lane);
    uint32_t a[2][4];
    packed.unpack(a);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        if (!Format::IS_WHOLE) {
#pragma unroll
            for (int word = 0; word < 4; ++word) {
                a[half][word] = bf16x2_fma(a[half][word], BF16X2_WHOLE, BF16X2_MINUS_ZERO);
            }
        }
        to[(static_cast<size_t>(cell) * 2 + half) * WARP + lane] =
            make_uint4(a[half][0], a[half][1], a[half][2], a[half][3]);
    }
}

#define DEQUANTIZE(name, ...)                                                                    \
    extern "C" __global__ void dequantize_##name(const uint8_t* from, uint4* to, int cells) {    \
        dequantize<__VA_ARGS__>(from, to, cells);                                                \
    }

DEQUANTIZE(f16, F16)
FOR_EACH_QUANTIZED(DEQUANTIZE)
