// Matrix products for many tokens on devices of compute capability 9.0, whose matrix units take the
// rows from registers and the tokens from shared memory, for four warps at once. The sums are those of
// linear_many.cu, bit for bit: the units of these devices add 16 products in one way.
//
// A block computes 256 rows for 128 tokens. The tokens' activations pass through shared memory in
// stages of four cells, in core matrices, which one warp fetches for all; each warp has 16 rows, whose
// cells nobody else in the block needs, and takes them from memory itself, four ahead. Warps wait for each
// other where a stage is filled anew, and groups of four take turns at the units: in step with each other,
// all would fetch their rows at a time, and the units would have nothing to do meanwhile. A group hands its
// turn on before its last products, so that the units have these to do while the next one begins.
//
// Blocks that run at a time share their rows with others, all of which would wait for the device's memory:
// they bring them into the second-level cache in turns, some stages ahead.

#include "epilogue.cuh"

constexpr int THREADS = 512;
constexpr int ROW_TILES = THREADS / WARP;
constexpr int TOKEN_TILES = 16;
// Warps that use the units together, how many such groups there are, and how many of them at a time.
constexpr int GROUP_WARPS = 4;
constexpr int GROUPS = THREADS / WARP / GROUP_WARPS;
constexpr int TURNS = GROUPS / 2;
constexpr int STAGE_CELLS = 4;
constexpr int STAGES = 3;
constexpr int TILE_CHUNKS = STAGE_CELLS * WARP;
constexpr int STAGE_CHUNKS = TOKEN_TILES * TILE_CHUNKS;
// Rows are brought into the cache so many stages ahead, each by one of so many blocks that share them.
constexpr int PREFETCH_STAGES = 4;
constexpr int PREFETCH_BLOCKS = 4;
constexpr int ROW_STAGE_BYTES = STAGE_CELLS * 2 * WARP * 16;

using Sums = float[TOKEN_TILES * 4];

// The part of a product that a block computes.
struct Work {
    // What this lane has of the warp's rows, and the 8 tokens that it fetches where it fetches.
    const uint4* rows;
    const uint4* input;
    // The tile of rows that this lane brings into the cache where it does.
    const uint4* prefetched;
    int stages;
    int stages_of_part;
    int row_tile;
    int first_token_tile;

    // Blocks that follow each other share what they read: 8 rows of blocks at a time, so that it
    // stays in the second-level cache. Tiles that are not there are read as the last one, for nobody.
    __device__ __forceinline__ Work(const uint4* matrix, const uint4* input, int cells, int row_tiles, int tokens)
        : stages(cells / STAGE_CELLS), stages_of_part(part_cells(cells) / STAGE_CELLS) {
        constexpr int TOGETHER = 8;
        const int token_tiles = (tokens + CELL_TOKENS - 1) / CELL_TOKENS;
        const int wide = (token_tiles + TOKEN_TILES - 1) / TOKEN_TILES;
        const int high = (row_tiles + ROW_TILES - 1) / ROW_TILES;
        const int band = blockIdx.x / (TOGETHER * wide), within = blockIdx.x % (TOGETHER * wide);
        const int rows_of_band = min(TOGETHER, high - band * TOGETHER);
        row_tile = (band * TOGETHER + within % rows_of_band) * ROW_TILES + threadIdx.x / WARP;
        first_token_tile = within / rows_of_band * TOKEN_TILES;
        const auto tile_rows = [&](int tile) {
            return matrix + static_cast<size_t>(min(tile, row_tiles - 1)) * cells * 2 * WARP;
        };
        rows = tile_rows(row_tile) + lane_id();
        prefetched = tile_rows(row_tile - threadIdx.x / WARP + lane_id() % ROW_TILES);
        const int tile = min(first_token_tile + lane_id() % TOKEN_TILES, token_tiles - 1);
        this->input = input + static_cast<size_t>(tile) * cells * WARP;
    }
};

// The stages in shared memory: `full` when the activations of one are there, `empty` when all warps are
// done with it.
struct Stages {
    uint4* shared;
    Barrier* full;
    Barrier* empty;

    // Begins to fetch a stage once its place is free. By one warp.
    __device__ __forceinline__ void fetch(const Work& work, int stage) const {
        const int place = stage % STAGES;
        if (stage >= STAGES) {
            empty[place].wait((stage / STAGES - 1) % 2);
        }
        if (lane_id() == 0) {
            full[place].arrive_with(STAGE_CHUNKS * sizeof(uint4));
        }
        __syncwarp();
        if (lane_id() < TOKEN_TILES) {
            uint4* to = shared + place * STAGE_CHUNKS + lane_id() * TILE_CHUNKS;
            copy_bulk(to, work.input + stage * TILE_CHUNKS, TILE_CHUNKS * sizeof(uint4), full[place]);
        } else if ((work.first_token_tile / TOKEN_TILES + stage) % PREFETCH_BLOCKS == 0 &&
                   stage + PREFETCH_STAGES < work.stages) {
            const int later = stage + PREFETCH_STAGES;
            prefetch_bulk(work.prefetched + static_cast<size_t>(later) * STAGE_CELLS * 2 * WARP, ROW_STAGE_BYTES);
        }
    }
};

// The cells of a stage for the warp's rows.
struct Rows {
    uint4 halves[STAGE_CELLS][2];

    __device__ __forceinline__ void load(const Work& work, int stage, int cell) {
        const uint4* from = work.rows + static_cast<size_t>(stage * STAGE_CELLS + cell) * 2 * WARP;
        // A quantized matrix has been unpacked by the kernel before.
        halves[cell][0] = load_changed_once(from);
        halves[cell][1] = load_changed_once(from + WARP);
    }
    __device__ __forceinline__ void multiply(int cell, const uint4* tokens, Sums& sums) const {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint4 words = halves[cell][half];
            group_mma_bf16(sums, {words.x, words.y, words.z, words.w}, tokens + cell * WARP + half * (WARP / 2));
        }
    }
};

__device__ __forceinline__ void clear(Sums& sums) {
#pragma unroll
    for (int sum = 0; sum < TOKEN_TILES * 4; ++sum) {
        sums[sum] = 0.0f;
    }
}

// Adds to the sums of a part those of the parts before it, which this thread keeps in shared memory;
// `first` says that there are none.
__device__ __forceinline__ void add_totals(const float4* totals, bool first, Sums& sums) {
#pragma unroll
    for (int tile = 0; tile < TOKEN_TILES; ++tile) {
        const float4 before = first ? make_float4(0.0f, 0.0f, 0.0f, 0.0f) : totals[tile * THREADS];
        sums[tile * 4] = __fadd_rn(before.x, sums[tile * 4]);
        sums[tile * 4 + 1] = __fadd_rn(before.y, sums[tile * 4 + 1]);
        sums[tile * 4 + 2] = __fadd_rn(before.z, sums[tile * 4 + 2]);
        sums[tile * 4 + 3] = __fadd_rn(before.w, sums[tile * 4 + 3]);
    }
}

__device__ __forceinline__ void keep_totals(float4* totals, const Sums& sums) {
#pragma unroll
    for (int tile = 0; tile < TOKEN_TILES; ++tile) {
        const float* of_tile = sums + tile * 4;
        totals[tile * THREADS] = make_float4(of_tile[0], of_tile[1], of_tile[2], of_tile[3]);
    }
}

// The sums over all columns for the warp's rows and the block's tokens.
__device__ __forceinline__ void product(const Work& work, Sums& sums) {
    DYNAMIC_SHARED(uint4, shared);
    __shared__ Barrier full[STAGES], empty[STAGES], turns[GROUPS];
    float4* totals = reinterpret_cast<float4*>(shared + STAGES * STAGE_CHUNKS) + threadIdx.x;
    const Stages stages = {shared, full, empty};
    const int warp = threadIdx.x / WARP, group = warp / GROUP_WARPS;
    if (threadIdx.x < STAGES) {
        full[threadIdx.x].begin(1);
        empty[threadIdx.x].begin(THREADS / WARP);
    }
    if (threadIdx.x < GROUPS) {
        turns[threadIdx.x].begin(GROUP_WARPS);
    }
    __syncthreads();
    Rows rows;
    clear(sums);
    for (int stage = 0; warp == 0 && stage < min(STAGES - 1, work.stages); ++stage) {
        stages.fetch(work, stage);
    }
#pragma unroll
    for (int cell = 0; cell < STAGE_CELLS; ++cell) {
        rows.load(work, 0, cell);
    }
    int left = work.stages_of_part;
    for (int stage = 0; stage < work.stages; ++stage) {
        const int place = stage % STAGES, next = min(stage + 1, work.stages - 1);
        const uint4* tokens = shared + place * STAGE_CHUNKS;
        full[place].wait(stage / STAGES % 2);
        // The units are this group's once the one has left them that had them before.
        if (stage > 0 || group >= TURNS) {
            turns[group].wait((group < TURNS ? stage - 1 : stage) % 2);
        }
        // No branch among these: at one, a compiler would let all that is under way end.
        group_mma_fence();
#pragma unroll
        for (int cell = 0; cell < STAGE_CELLS - 1; ++cell) {
            rows.multiply(cell, tokens, sums);
        }
        turns[(group + TURNS) % GROUPS].arrive_where(lane_id() == 0);
        rows.multiply(STAGE_CELLS - 1, tokens, sums);
        group_mma_commit();
        group_mma_wait(sums);
#pragma unroll
        for (int cell = 0; cell < STAGE_CELLS; ++cell) {
            rows.load(work, next, cell);
        }
        if (lane_id() == 0) {
            empty[place].arrive();
        }
        // Into the place of the stage before, which the other warps have left by now or soon will.
        if (warp == 0 && stage + STAGES - 1 < work.stages) {
            stages.fetch(work, stage + STAGES - 1);
        }
        if (--left == 0 || stage == work.stages - 1) {
            add_totals(totals, stage < work.stages_of_part, sums);
            if (stage < work.stages - 1) {
                keep_totals(totals, sums);
                clear(sums);
            }
            left = work.stages_of_part;
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    linear_many_hopper(const uint4* matrix, const uint4* input, int cells, int tokens, int rows, ToRows to) {
    grid_release();
    grid_wait();
    const Work work(matrix, input, cells, (rows + CELL_ROWS - 1) / CELL_ROWS, tokens);
    Sums sums;
    product(work, sums);
    const int lane = lane_id();
    constexpr int TOGETHER = 16;
    const auto place = [&](int sum) {
        return make_int2((work.first_token_tile + sum / 4) * CELL_TOKENS + lane % 4 * 2 + sum % 2,
                         work.row_tile * CELL_ROWS + lane / 4 + sum % 4 / 2 * 8);
    };
    const bool whole =
        (work.first_token_tile + TOKEN_TILES) * CELL_TOKENS <= tokens && (work.row_tile + 1) * CELL_ROWS <= rows;
#pragma unroll
    for (int first = 0; first < TOKEN_TILES * 4; first += TOGETHER) {
        const auto at = [&](int index) { return place(first + index); };
        if (whole) {
            to.store_all<TOGETHER, true>(sums + first, tokens, rows, at);
        } else {
            to.store_all<TOGETHER, false>(sums + first, tokens, rows, at);
        }
    }
}

// The warp's rows are 8 features: a core matrix of the output for each 8 tokens, once neighbours have
// exchanged features for tokens. `first_tile` is that of the matrix's rows among those of all features.
extern "C" __global__ void __launch_bounds__(THREADS, 1)
    gated_many_hopper(const uint4* matrix, const uint4* input, int cells, int tokens, int row_tiles,
                      int first_tile, ToGated to) {
    grid_release();
    grid_wait();
    const Work work(matrix, input, cells, row_tiles, tokens);
    Sums sums;
    product(work, sums);
    const int lane = lane_id(), feature = lane / 4, tile = first_tile + work.row_tile;
    const bool odd = feature % 2 == 1, there = work.row_tile < row_tiles;
    const int token_tiles = (tokens + CELL_TOKENS - 1) / CELL_TOKENS;
#pragma unroll
    for (int token_tile = 0; token_tile < TOKEN_TILES; ++token_tile) {
        const float* of_tile = sums + token_tile * 4;
        const float first = there ? to.value(tile, feature, of_tile[0], of_tile[2]) : 0.0f;
        const float second = there ? to.value(tile, feature, of_tile[1], of_tile[3]) : 0.0f;
        const float given = __shfl_xor_sync(0xffffffffu, odd ? first : second, 4);
        // Of the tokens 2t and 2t + 1 an even lane has the first, an odd one the second.
        const int token = (work.first_token_tile + token_tile) * CELL_TOKENS + lane % 4 * 2 + (odd ? 1 : 0);
        if (there && work.first_token_tile + token_tile < token_tiles) {
            to.output.word(token, tile * 8 + feature / 2 * 2) =
                odd ? bf16x2_of(given, second) : bf16x2_of(first, given);
        }
    }
}
