// Attention over the paged cache, in the matrix unit.
//
// Scores are never stored: a running maximum and sum per row (Milakov and Gimelshein 2018,
// https://arxiv.org/abs/1805.02867; Dao et al. 2022, https://arxiv.org/abs/2205.14135) over chunks of
// 64 positions. Positions are cut into splits of 128 that are computed by themselves and then
// joined in their order, which is what lets few tokens be spread over the whole device (Dao et al.
// 2023, Flash-Decoding). Chunks and splits begin at fixed positions, so the sums for a token are the
// same however many tokens share its pass, and whether its splits are computed by one block or many.
//
// The rows of a tile are the tokens of a sequence with all heads that share a head of keys: row
// token * group + head.
//
// What a kernel knows of how keys and values are kept is in `Pages`: those of bfloat16 go to the matrix
// unit as they are, those of 8 bits are multiplied by their scales and rounded to bfloat16 on the way.

#include "pages.cuh"

constexpr int THREADS = 128;
constexpr int TILE_ROWS = 16;
constexpr int BLOCK_ROWS = THREADS / WARP * TILE_ROWS;
constexpr int CHUNK = 64;
constexpr int CHUNK_PAGES = CHUNK / PAGE_TOKENS;
constexpr int SPLIT = 128;

// Chunks that are in shared memory at once. Of large heads it is one, since not every device has room for
// two; then nothing is fetched while a chunk is attended to.
constexpr int stages_of(int size) { return size <= 128 ? 2 : 1; }

__device__ __forceinline__ float minus_infinity() { return __uint_as_float(0xff800000u); }

// For the two rows of a lane, g and g + 8: the maximum of the scores, the sum of their powers, and
// the sums of SIZE numbers of the values they weigh.
template <int SIZE>
struct Softmax {
    float maximum[2];
    float sum[2];
    float output[SIZE / 8][4];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int row = 0; row < 2; ++row) {
            maximum[row] = minus_infinity();
            sum[row] = 0.0f;
        }
#pragma unroll
        for (int tile = 0; tile < SIZE / 8; ++tile) {
#pragma unroll
            for (int place = 0; place < 4; ++place) {
                output[tile][place] = 0.0f;
            }
        }
    }
};

// By what two parts of a softmax are multiplied when they are joined under `maximum`.
__device__ __forceinline__ float weight_of(float part, float maximum) {
    return maximum == minus_infinity() ? 0.0f : exp2_fast(part - maximum);
}

__device__ __forceinline__ float join(float total, float weight_total, float part, float weight_part) {
    return __fmaf_rn(part, weight_part, __fmul_rn(total, weight_total));
}

template <int SIZE>
__device__ __forceinline__ void join(Softmax<SIZE>& total, const Softmax<SIZE>& part) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        const float maximum = fmaxf(total.maximum[row], part.maximum[row]);
        const float of_total = weight_of(total.maximum[row], maximum);
        const float of_part = weight_of(part.maximum[row], maximum);
        total.maximum[row] = maximum;
        total.sum[row] = join(total.sum[row], of_total, part.sum[row], of_part);
#pragma unroll
        for (int tile = 0; tile < SIZE / 8; ++tile) {
#pragma unroll
            for (int place = 2 * row; place < 2 * row + 2; ++place) {
                float& output = total.output[tile][place];
                output = join(output, of_total, part.output[tile][place], of_part);
            }
        }
    }
}

// Begins to fetch the keys and values of the chunk at `start`: of its pages those that begin from `first`
// on and before `last`. Positions from `end` on are not there.
template <class Pages>
__device__ __forceinline__ void fetch_pages(const Work& work, uint4* stage, int start, int end, int first, int last) {
    // Where the pages are, is read for all of them at once: a lane reads it for one.
    const int own = start + lane_id() % CHUNK_PAGES * PAGE_TOKENS;
    const typename Pages::Source source_of_lane(work, own < end ? own : start);
#pragma unroll 1
    for (int page = 0; page < CHUNK_PAGES; ++page) {
        const typename Pages::Source source = source_of_lane.of(page);
        const int position = start + page * PAGE_TOKENS;
        if (position < first || position >= last) {
            continue;
        }
        uint4* to = stage + page * Pages::CHUNKS + threadIdx.x;
#pragma unroll
        for (int run = 0; run < Pages::RUNS; ++run) {
            const uint4* from = source.run(work, run) + threadIdx.x;
            const int chunks = Pages::run_chunks(run);
#pragma unroll
            for (int chunk = 0; chunk < chunks; chunk += THREADS) {
                if (chunk + THREADS <= chunks || static_cast<int>(threadIdx.x) < chunks - chunk) {
                    copy_async_16(to + chunk, from + chunk, position < end);
                }
            }
            to += chunks;
        }
    }
}

// Begins to fetch all of the chunk at `start`.
template <class Pages>
__device__ __forceinline__ void fetch(const Work& work, uint4* stage, int start, int end) {
    fetch_pages<Pages>(work, stage, start, end, start, start + CHUNK);
    copy_async_commit();
}

// The queries of a tile of rows, as a lane has them.
template <int SIZE>
using Queries = uint4[SIZE / 32][2];

template <int SIZE>
__device__ __forceinline__ void load_queries(const Work& work, const uint16_t* queries, int tile_row,
                                             Queries<SIZE>& of_rows) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = tile_row + lane_id() / 4 + half * 8;
        const int token = work.sequence.first_row + row / work.group;
        const int head = work.kv_head * work.group + row % work.group;
        const uint16_t* query = queries + (static_cast<size_t>(token) * work.shape.heads + head) * SIZE;
#pragma unroll
        for (int part = 0; part < SIZE / 32; ++part) {
            const uint4* from = reinterpret_cast<const uint4*>(query) + part * 4 + lane_id() % 4;
            of_rows[part][half] = row < work.rows ? *from : make_uint4(0, 0, 0, 0);
        }
    }
}

// Scores of the tile's rows for 8 positions of the chunk in `stage`.
template <int SIZE, class Pages>
__device__ __forceinline__ void score(const Queries<SIZE>& queries, const uint4* stage, int tile, float (&sums)[4]) {
    sums[0] = sums[1] = sums[2] = sums[3] = 0.0f;
    const uint4* page = stage + tile / 2 * Pages::CHUNKS;
#pragma unroll
    for (int part = 0; part < SIZE / 32; ++part) {
        const uint4 key = Pages::key(page, tile % 2, part);
        const uint4 top = queries[part][0], bottom = queries[part][1];
        mma_bf16(sums, {top.x, bottom.x, top.y, bottom.y}, {key.x, key.y});
        mma_bf16(sums, {top.z, bottom.z, top.w, bottom.w}, {key.z, key.w});
    }
}

// Minus infinity where a row does not see, of the 8 positions from `start` on.
__device__ __forceinline__ void hide(int start, const int (&first)[2], const int (&last)[2], float (&scores)[4]) {
#pragma unroll
    for (int place = 0; place < 4; ++place) {
        const int position = start + lane_id() % 4 * 2 + place % 2, row = place / 2;
        const bool sees = position >= first[row] && position <= last[row];
        scores[place] = sees ? scores[place] : minus_infinity();
    }
}

__device__ __forceinline__ float quad_max(float value) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 1));
    return fmaxf(value, __shfl_xor_sync(0xffffffffu, value, 2));
}

__device__ __forceinline__ float quad_sum(float value) {
    value = __fadd_rn(value, __shfl_xor_sync(0xffffffffu, value, 1));
    return __fadd_rn(value, __shfl_xor_sync(0xffffffffu, value, 2));
}

// Takes the scores of a chunk and its values, of which the softmax has the numbers from 16 * `first` on,
// into it. Where a row sees nothing of the chunk this changes no bit.
template <int SIZE, class Pages>
__device__ __forceinline__ void weigh(float (&scores)[CHUNK / 8][4], const uint4* stage, int first,
                                      Softmax<SIZE>& part) {
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        float maximum = minus_infinity();
#pragma unroll
        for (int tile = 0; tile < CHUNK / 8; ++tile) {
            maximum = fmaxf(maximum, fmaxf(scores[tile][2 * row], scores[tile][2 * row + 1]));
        }
        maximum = fmaxf(part.maximum[row], quad_max(maximum));
        const float kept = weight_of(part.maximum[row], maximum);
        // Of what nobody sees the weight is zero under any maximum.
        const float finite = maximum == minus_infinity() ? 0.0f : maximum;
        float sum = 0.0f;
#pragma unroll
        for (int tile = 0; tile < CHUNK / 8; ++tile) {
#pragma unroll
            for (int place = 2 * row; place < 2 * row + 2; ++place) {
                scores[tile][place] = exp2_fast(scores[tile][place] - finite);
                sum = __fadd_rn(sum, scores[tile][place]);
            }
        }
        part.maximum[row] = maximum;
        part.sum[row] = __fmaf_rn(part.sum[row], kept, quad_sum(sum));
        // Most chunks have no new maximum.
        if (__any_sync(0xffffffffu, kept != 1.0f)) {
#pragma unroll
            for (int tile = 0; tile < SIZE / 8; ++tile) {
                part.output[tile][2 * row] = __fmul_rn(part.output[tile][2 * row], kept);
                part.output[tile][2 * row + 1] = __fmul_rn(part.output[tile][2 * row + 1], kept);
            }
        }
    }
#pragma unroll
    for (int page = 0; page < CHUNK_PAGES; ++page) {
        const float(&left)[4] = scores[page * 2];
        const float(&right)[4] = scores[page * 2 + 1];
        const uint32_t weights[4] = {bf16x2_of(left[0], left[1]), bf16x2_of(left[2], left[3]),
                                     bf16x2_of(right[0], right[1]), bf16x2_of(right[2], right[3])};
#pragma unroll
        for (int tile = 0; tile < SIZE / 16; ++tile) {
            const uint4 value = Pages::value(stage + page * Pages::CHUNKS, first + tile);
            mma_bf16(part.output[tile * 2], weights, {value.x, value.y});
            mma_bf16(part.output[tile * 2 + 1], weights, {value.z, value.w});
        }
    }
}

// Attends of the tile's rows to the splits from `split` on and before `split_end`, and hands the
// softmax of each split to `done`.
template <int SIZE, class Pages, class Done>
__device__ __forceinline__ void attend(const Work& work, const uint16_t* queries, int first_row, int split,
                                       int split_end, const Done& done) {
    DYNAMIC_SHARED(uint4, stages);
    constexpr int STAGE_CHUNKS = CHUNK_PAGES * Pages::CHUNKS;
    const int lane = lane_id(), tile_row = first_row + threadIdx.x / WARP * TILE_ROWS;
    int first[2], last[2];
    work.seen(tile_row + lane / 4, first[0], last[0]);
    work.seen(tile_row + lane / 4 + 8, first[1], last[1]);
    Queries<SIZE> of_rows;
    load_queries<SIZE>(work, queries, tile_row, of_rows);
    // The chunks that any row of the block sees.
    const int end_row = min(first_row + BLOCK_ROWS, work.rows);
    const int end = min(work.sequence.position + (end_row - 1) / work.group + 1, split_end * SPLIT);
    const int seen = work.shape.first_seen(work.sequence.position + first_row / work.group);
    const int start = max(split * SPLIT, seen / CHUNK * CHUNK);
    if (start < end) {
        fetch<Pages>(work, stages, start, end);
    }
    // What all rows of the tile see.
    const int last_row = tile_row + TILE_ROWS - 1;
    const int seen_first = work.shape.first_seen(work.sequence.position + last_row / work.group);
    const int seen_last = last_row < work.rows ? work.sequence.position + tile_row / work.group : -1;
    Softmax<SIZE> part;
    part.clear();
    int stage = 0;
    for (int chunk = start; chunk < end; chunk += CHUNK) {
        const bool ahead = stages_of(SIZE) > 1 && chunk + CHUNK < end;
        if (ahead) {
            fetch<Pages>(work, stages + (1 - stage) * STAGE_CHUNKS, chunk + CHUNK, end);
            copy_async_wait<1>();
        } else {
            copy_async_wait<0>();
        }
        __syncthreads();
        if (tile_row < work.rows) {
            const bool hidden = chunk < seen_first || chunk + CHUNK - 1 > seen_last;
            const uint4* here = stages + stage * STAGE_CHUNKS;
            float scores[CHUNK / 8][4];
#pragma unroll
            for (int tile = 0; tile < CHUNK / 8; ++tile) {
                score<SIZE, Pages>(of_rows, here, tile, scores[tile]);
            }
#pragma unroll
            for (int tile = 0; hidden && tile < CHUNK / 8; ++tile) {
                hide(chunk + tile * 8, first, last, scores[tile]);
            }
            weigh<SIZE, Pages>(scores, here, 0, part);
        }
        __syncthreads();
        if (stages_of(SIZE) > 1) {
            stage = 1 - stage;
        } else if (chunk + CHUNK < end) {
            fetch<Pages>(work, stages, chunk + CHUNK, end);
        }
        if (chunk / SPLIT != (chunk + CHUNK) / SPLIT || chunk + CHUNK >= end) {
            done(part, tile_row);
            part.clear();
        }
    }
}

// How many numbers of a head a warp weighs where a block has one tile of rows.
constexpr int share_of(int size) { return (size / 16 + THREADS / WARP - 1) / (THREADS / WARP) * 16; }

// As attend, for one split and no more rows than a tile has: each warp scores a page of each chunk, and
// weighs some numbers of all of them. All of the split is in shared memory at once, and scores take the
// place of their keys there. `done` is handed the warp's numbers, from its second argument on.
template <int SIZE, class Pages, class Done>
__device__ __forceinline__ void attend_together(const Work& work, const uint16_t* queries, int split, const Done& done) {
    DYNAMIC_SHARED(uint4, stages);
    constexpr int STAGE_CHUNKS = CHUNK_PAGES * Pages::CHUNKS, STAGES = SPLIT / CHUNK, SHARE = share_of(SIZE);
    constexpr int TILES = CHUNK / 8, PAGE_TILES = PAGE_TOKENS / 8;
    static_assert(CHUNK_PAGES == THREADS / WARP, "a warp has a page of each chunk");
    static_assert(Pages::run_chunks(0) >= PAGE_TILES * WARP, "scores fit where the keys were");
    const int lane = lane_id(), warp = threadIdx.x / WARP;
    const int end = min(work.sequence.position + (work.rows - 1) / work.group + 1, (split + 1) * SPLIT);
    const int seen = work.shape.first_seen(work.sequence.position);
    const int start = max(split * SPLIT, seen / CHUNK * CHUNK);
    // What earlier passes left can be fetched before the kernel before this one has ended.
    const int kept = work.sequence.position / PAGE_TOKENS * PAGE_TOKENS;
    const auto stage_of = [&](int chunk) { return stages + chunk / CHUNK % STAGES * STAGE_CHUNKS; };
    const auto scores_of = [&](int chunk, int tile) {
        uint4* page = stage_of(chunk) + tile / PAGE_TILES * Pages::CHUNKS;
        return reinterpret_cast<float4*>(page + tile % PAGE_TILES * WARP + lane);
    };
    for (int chunk = start; chunk < end; chunk += CHUNK) {
        fetch_pages<Pages>(work, stage_of(chunk), chunk, end, chunk, kept);
    }
    grid_wait();
    for (int chunk = max(start, kept / CHUNK * CHUNK); chunk < end; chunk += CHUNK) {
        fetch_pages<Pages>(work, stage_of(chunk), chunk, end, kept, chunk + CHUNK);
    }
    copy_async_commit();
    int first[2], last[2];
    work.seen(lane / 4, first[0], last[0]);
    work.seen(lane / 4 + 8, first[1], last[1]);
    Queries<SIZE> of_rows;
    load_queries<SIZE>(work, queries, 0, of_rows);
    copy_async_wait<0>();
    __syncthreads();
    for (int chunk = start; chunk < end; chunk += CHUNK) {
        float sums[PAGE_TILES][4];
#pragma unroll
        for (int tile = 0; tile < PAGE_TILES; ++tile) {
            const int of_chunk = warp * PAGE_TILES + tile;
            score<SIZE, Pages>(of_rows, stage_of(chunk), of_chunk, sums[tile]);
            hide(chunk + of_chunk * 8, first, last, sums[tile]);
        }
        // All lanes have the page's keys.
        __syncwarp();
#pragma unroll
        for (int tile = 0; tile < PAGE_TILES; ++tile) {
            const float(&four)[4] = sums[tile];
            *scores_of(chunk, warp * PAGE_TILES + tile) = make_float4(four[0], four[1], four[2], four[3]);
        }
    }
    __syncthreads();
    if (start >= end || warp * SHARE >= SIZE) {
        return;
    }
    Softmax<SHARE> part;
    part.clear();
    for (int chunk = start; chunk < end; chunk += CHUNK) {
        float scores[TILES][4];
#pragma unroll
        for (int tile = 0; tile < TILES; ++tile) {
            const float4 four = *scores_of(chunk, tile);
            scores[tile][0] = four.x;
            scores[tile][1] = four.y;
            scores[tile][2] = four.z;
            scores[tile][3] = four.w;
        }
        weigh<SHARE, Pages>(scores, stage_of(chunk), warp * SHARE / 16, part);
    }
    done(part, warp * SHARE);
}

// Puts two neighbouring numbers of a head's output among the activations of the output projection.
__device__ __forceinline__ void put(const Shape& shape, const Activations& output, int token, int head, int number,
                                    float first, float second) {
    if (number < shape.head_size) {
        output.word(token, head * shape.head_size + number) = bf16x2_of(first, second);
    }
}

__device__ __forceinline__ Work work_of(const Shape& shape, const Sequence& sequence, int block,
                                        const uint8_t* cache) {
    const int group = shape.heads / shape.kv_heads;
    return {shape, sequence, block, cache, static_cast<int>(blockIdx.y), group, sequence.tokens * group};
}

// For many tokens: a block takes 64 rows of a sequence through all their splits.
template <int SIZE, class Pages>
__device__ __forceinline__ void attend_many(const uint16_t* queries, const uint8_t* cache, Shape shape,
                                            const Sequence* sequences, int first_sequence, int block, Activations output) {
    grid_release();
    const Work work = work_of(shape, sequences[first_sequence + blockIdx.z], block, cache);
    grid_wait();
    const int first_row = (gridDim.x - 1 - blockIdx.x) * BLOCK_ROWS;
    if (first_row >= work.rows) {
        return;
    }
    Softmax<SIZE> total;
    total.clear();
    const int end = work.sequence.position + work.sequence.tokens;
    attend<SIZE, Pages>(work, queries, first_row, 0, (end + SPLIT - 1) / SPLIT,
                 [&](const Softmax<SIZE>& part, int) { join(total, part); });
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = first_row + threadIdx.x / WARP * TILE_ROWS + lane_id() / 4 + half * 8;
        if (row >= work.rows) {
            continue;
        }
        const float factor = __frcp_rn(total.sum[half]);
        const int token = work.sequence.first_row + row / work.group;
        const int head = work.kv_head * work.group + row % work.group;
#pragma unroll
        for (int tile = 0; tile < SIZE / 8; ++tile) {
            put(shape, output, token, head, tile * 8 + lane_id() % 4 * 2,
                __fmul_rn(total.output[tile][2 * half], factor),
                __fmul_rn(total.output[tile][2 * half + 1], factor));
        }
    }
}

// A split of a sequence of few rows, which a block for each head of keys attends to.
struct Split {
    // None where it is negative: so many are launched as a graph has, and a few are for nobody.
    int sequence;
    int index;
    // Where the partials of the sequence begin: so many tokens' splits are before them.
    int before;
    int unused;
};

// What a row has of a split: maximum and sum, then the output. A sequence has those of all its tokens and
// heads for one split after the other.
struct Partials {
    float* values;
    // How many splits of each sequence and head of keys are there; zero before and after a kernel.
    unsigned* counts;

    // `token` is counted among those of the sequence, whose partials begin at `values`.
    __device__ __forceinline__ float* of(const Work& work, int token, int head, int split, int size) const {
        const size_t row = static_cast<size_t>(split * work.sequence.tokens + token) * work.shape.heads + head;
        return values + row * (size + 2);
    }
};

// Joins the splits of a token's head, some of which are read at a time: a warp's work.
template <int SIZE>
__device__ __forceinline__ void join_splits(const Work& work, const Partials& partials, int token, int head,
                                            const Activations& output) {
    constexpr int PAIRS = (SIZE / 2 + WARP - 1) / WARP, TOGETHER = SIZE <= 128 ? 8 : 4;
    const int position = work.sequence.position + token - work.sequence.first_row, end = position / SPLIT + 1;
    float maximum = minus_infinity(), sum = 0.0f, outputs[PAIRS][2] = {};
    for (int start = work.shape.first_seen(position) / SPLIT; start < end; start += TOGETHER) {
        float2 of_split[TOGETHER], values[TOGETHER][PAIRS];
#pragma unroll
        for (int ahead = 0; ahead < TOGETHER; ++ahead) {
            const int split = min(start + ahead, end - 1);
            const float* from = partials.of(work, token - work.sequence.first_row, head, split, SIZE);
            of_split[ahead] = __ldcg(reinterpret_cast<const float2*>(from));
#pragma unroll
            for (int pair = 0; pair < PAIRS; ++pair) {
                const int number = min((pair * WARP + lane_id()) * 2, SIZE - 2);
                values[ahead][pair] = __ldcg(reinterpret_cast<const float2*>(from + 2 + number));
            }
        }
#pragma unroll
        for (int ahead = 0; ahead < TOGETHER; ++ahead) {
            if (start + ahead >= end) {
                break;
            }
            const float joint = fmaxf(maximum, of_split[ahead].x);
            const float of_total = weight_of(maximum, joint), of_part = weight_of(of_split[ahead].x, joint);
            maximum = joint;
            sum = join(sum, of_total, of_split[ahead].y, of_part);
#pragma unroll
            for (int pair = 0; pair < PAIRS; ++pair) {
                outputs[pair][0] = join(outputs[pair][0], of_total, values[ahead][pair].x, of_part);
                outputs[pair][1] = join(outputs[pair][1], of_total, values[ahead][pair].y, of_part);
            }
        }
    }
    const float factor = __frcp_rn(sum);
#pragma unroll
    for (int pair = 0; pair < PAIRS; ++pair) {
        const int number = (pair * WARP + lane_id()) * 2;
        if (number < SIZE) {
            put(work.shape, output, token, head, number, __fmul_rn(outputs[pair][0], factor),
                __fmul_rn(outputs[pair][1], factor));
        }
    }
}

// Whether this block is the last of `count` that come here with `counter`; what the others wrote
// before can then be read.
__device__ __forceinline__ bool is_last(unsigned* counter, unsigned count) {
    __shared__ bool last;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
        last = atomicAdd(counter, 1u) == count - 1;
        if (last) {
            *counter = 0;
        }
    }
    __syncthreads();
    __threadfence();
    return last;
}

// Puts the softmax of a split where the block finds it that joins the splits: of the rows of a tile SHARE
// numbers, from `number` on.
template <int SIZE, int SHARE>
__device__ __forceinline__ void put_partial(const Work& work, const Partials& partials, int split, int tile_row,
                                            int number, const Softmax<SHARE>& part) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
        const int row = tile_row + lane_id() / 4 + half * 8;
        if (row >= work.rows) {
            continue;
        }
        const int head = work.kv_head * work.group + row % work.group;
        float* values = partials.of(work, row / work.group, head, split, SIZE);
        if (number == 0 && lane_id() % 4 == 0) {
            values[0] = part.maximum[half];
            values[1] = part.sum[half];
        }
#pragma unroll
        for (int tile = 0; tile < SHARE / 8; ++tile) {
            const int place = number + tile * 8 + lane_id() % 4 * 2;
            values[2 + place] = part.output[tile][2 * half];
            values[3 + place] = part.output[tile][2 * half + 1];
        }
    }
}

// For few tokens: a block takes all rows of a sequence, at most 64, through one split; where it is said
// to be in a TILE, at most 16 by all of its warps. The last one to be done joins the splits.
template <int SIZE, class Pages, bool TILE>
__device__ __forceinline__ void attend_few(const uint16_t* queries, const uint8_t* cache, Shape shape,
                                           const Sequence* sequences, const Split* splits, int block,
                                           Partials partials, const Activations& output) {
    grid_release();
    // What a pass begins with is there before its first kernel.
    const Split of_block = splits[blockIdx.x];
    if (!TILE || of_block.sequence < 0) {
        grid_wait();
    }
    if (of_block.sequence < 0) {
        return;
    }
    const Work work = work_of(shape, sequences[of_block.sequence], block, cache);
    const int split = of_block.index, end = work.sequence.position + work.sequence.tokens;
    partials.values += static_cast<size_t>(of_block.before) * shape.heads * (SIZE + 2);
    if constexpr (TILE) {
        constexpr int SHARE = share_of(SIZE);
        attend_together<SIZE, Pages>(work, queries, split, [&](const Softmax<SHARE>& part, int number) {
            put_partial<SIZE, SHARE>(work, partials, split, 0, number, part);
        });
    } else {
        attend<SIZE, Pages>(work, queries, 0, split, split + 1, [&](const Softmax<SIZE>& part, int tile_row) {
            put_partial<SIZE, SIZE>(work, partials, split, tile_row, 0, part);
        });
    }
    unsigned* counter = partials.counts + of_block.sequence * gridDim.y + blockIdx.y;
    if (!is_last(counter, (end + SPLIT - 1) / SPLIT)) {
        return;
    }
    for (int row = threadIdx.x / WARP; row < work.rows; row += THREADS / WARP) {
        const int token = work.sequence.first_row + row / work.group;
        join_splits<SIZE>(work, partials, token, work.kv_head * work.group + row % work.group, output);
    }
}

#define ATTENTION_OF_SPLITS(rows, TILE, name, Pages, SIZE, ...)                                       \
    extern "C" __global__ void __launch_bounds__(__VA_ARGS__) attend_##rows##_##name##_##SIZE(         \
        const uint16_t* queries, const uint8_t* cache, Shape shape, const Sequence* sequences,         \
        const Split* splits, int block, Partials partials, Activations output) {                       \
        attend_few<SIZE, Pages<SIZE>, TILE>(queries, cache, shape, sequences, splits, block, partials, output); \
    }

#define ATTENTION(name, Pages, SIZE)                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) attend_many_##name##_##SIZE(                 \
        const uint16_t* queries, const uint8_t* cache, Shape shape, const Sequence* sequences,         \
        int first_sequence, int block, Activations output) {                                           \
        attend_many<SIZE, Pages<SIZE>>(queries, cache, shape, sequences, first_sequence, block, output); \
    }                                                                                                  \
    ATTENTION_OF_SPLITS(few, false, name, Pages, SIZE, THREADS)

// Two blocks at least are what a launch leaves room for.
#define ATTENTION_OF_A_TILE(name, Pages, SIZE) ATTENTION_OF_SPLITS(tile, true, name, Pages, SIZE, THREADS, 2)

#define ATTENTION_OF_SIZES(name, Pages)  \
    ATTENTION(name, Pages, 32)           \
    ATTENTION(name, Pages, 64)           \
    ATTENTION(name, Pages, 96)           \
    ATTENTION(name, Pages, 128)          \
    ATTENTION_OF_A_TILE(name, Pages, 64) \
    ATTENTION_OF_A_TILE(name, Pages, 96) \
    ATTENTION_OF_A_TILE(name, Pages, 128)

#define ATTENTION_OF_LARGE_SIZES(name, Pages) \
    ATTENTION(name, Pages, 160)               \
    ATTENTION(name, Pages, 192)               \
    ATTENTION(name, Pages, 224)               \
    ATTENTION(name, Pages, 256)

// One kind of pages a module, and large heads apart, so that a node compiles for its device what its
// sessions need.
#ifdef PAGES
SIZES(PAGES_NAME, PAGES)
#else
ATTENTION_OF_SIZES(bf16, Bf16Pages)
ATTENTION_OF_SIZES(bytes, BytePages)
ATTENTION_OF_LARGE_SIZES(bf16, Bf16Pages)
ATTENTION_OF_LARGE_SIZES(bytes, BytePages)
#endif
