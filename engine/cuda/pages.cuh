// The pages of a head as attention takes them out of shared memory: in bfloat16, or in 8 bits.

#pragma once

#include "cache.cuh"

// What a block attends with and to.
struct Work {
    Shape shape;
    Sequence sequence;
    int block;
    const uint8_t* cache;
    int kv_head;
    int group;
    int rows;

    // The positions that row `row` sees: from `first` up to `last`; none where there is no such row.
    __device__ __forceinline__ void seen(int row, int& first, int& last) const {
        const int position = sequence.position + row / group;
        const bool there = row < rows;
        first = there ? shape.first_seen(position) : 1;
        last = there ? position : 0;
    }
};

// The page of a head in bfloat16, in shared memory: keys, then values.
template <int SIZE>
struct Bf16Pages {
    // Pieces of 16 bytes of the keys, and as many of the values.
    static constexpr int SIDE_CHUNKS = SIZE * 2;
    static constexpr int CHUNKS = 2 * SIDE_CHUNKS;

    // What follows each other in the device's memory too: keys, and values.
    static constexpr int RUNS = 2;
    static constexpr int run_chunks(int) { return SIDE_CHUNKS; }

    // The page that has a position, in the device's memory.
    struct Source {
        uint32_t page;

        __device__ __forceinline__ explicit Source(uint32_t page) : page(page) {}
        __device__ __forceinline__ Source(const Work& work, int position)
            : page(work.sequence.page(work.block, position)) {}
        // That of a lane of the warp.
        __device__ __forceinline__ Source of(int lane) const { return Source(__shfl_sync(0xffffffffu, page, lane)); }
        __device__ __forceinline__ const uint4* run(const Work& work, int index) const {
            const uint32_t side = work.shape.kv_heads * SIDE_CHUNKS, place = index * side + work.kv_head * SIDE_CHUNKS;
            return reinterpret_cast<const uint4*>(work.cache) + static_cast<size_t>(page) * (2 * side) + place;
        }
    };
    // The values 32 * part + 8t and the 7 behind of the lane's key g, of eight keys.
    static __device__ __forceinline__ uint4 key(const uint4* page, int eight, int part) {
        return page[eight * SIZE + part * WARP + lane_id()];
    }
    // The numbers 16 * tile + g and 8 further at the lane's positions.
    static __device__ __forceinline__ uint4 value(const uint4* page, int tile) {
        return page[SIDE_CHUNKS + tile * WARP + lane_id()];
    }
};

// Two bytes with a sign, the first of them the byte `index` of `word`, times their scales.
__device__ __forceinline__ uint32_t scaled(uint32_t word, int index, float first, float second) {
    const float low = static_cast<int8_t>(word >> index * 8 & 0xff);
    const float high = static_cast<int8_t>(word >> (index * 8 + 8) & 0xff);
    return bf16x2_of(__fmul_rn(low, first), __fmul_rn(high, second));
}

// As Bf16Pages, of 8 bits: keys, values, and the scales of both in binary16, one for each 32 values of a
// position.
template <int SIZE>
struct BytePages {
    static constexpr int SIDE_CHUNKS = SIZE;
    static constexpr int SCALE_CHUNKS = SIZE / 16;
    static constexpr int CHUNKS = 2 * (SIDE_CHUNKS + SCALE_CHUNKS);

    // Integers of keys and of values, then the scales of both.
    static constexpr int RUNS = 4;
    static constexpr int run_chunks(int index) { return index < 2 ? SIDE_CHUNKS : SCALE_CHUNKS; }

    struct Source {
        BytePage page;

        __device__ __forceinline__ explicit Source(const BytePage& page) : page(page) {}
        __device__ __forceinline__ Source(const Work& work, int position)
            : page(work.shape, work.sequence, SIZE, BF16_PAGES, work.block, position) {}
        __device__ __forceinline__ Source of(int lane) const {
            BytePage other = page;
            other.quants = __shfl_sync(0xffffffffu, page.quants, lane);
            other.scales = __shfl_sync(0xffffffffu, page.scales, lane);
            return Source(other);
        }
        __device__ __forceinline__ const uint4* run(const Work& work, int index) const {
            const uint8_t* from = work.cache + (index < 2 ? page.quants : page.scales);
            const int chunks = run_chunks(index);
            return reinterpret_cast<const uint4*>(from) + (index % 2 * work.shape.kv_heads + work.kv_head) * chunks;
        }
    };
    static __device__ __forceinline__ const uint16_t* scales(const uint4* page, int side) {
        return reinterpret_cast<const uint16_t*>(page + 2 * SIDE_CHUNKS + side * SCALE_CHUNKS);
    }
    static __device__ __forceinline__ uint4 key(const uint4* page, int eight, int part) {
        const int group = eight * (SIZE / 32) + part;
        const uint2 bytes = reinterpret_cast<const uint2*>(page)[group * WARP + lane_id()];
        const float scale = float_of_f16(scales(page, 0)[part * PAGE_TOKENS + eight * 8 + lane_id() / 4]);
        return make_uint4(scaled(bytes.x, 0, scale, scale), scaled(bytes.x, 2, scale, scale),
                          scaled(bytes.y, 0, scale, scale), scaled(bytes.y, 2, scale, scale));
    }
    static __device__ __forceinline__ uint4 value(const uint4* page, int tile) {
        const uint2 bytes = reinterpret_cast<const uint2*>(page + SIDE_CHUNKS)[tile * WARP + lane_id()];
        const uint16_t* of_block = scales(page, 1) + tile / 2 * PAGE_TOKENS + lane_id() % 4 * 2;
        const float scale[4] = {float_of_f16(of_block[0]), float_of_f16(of_block[1]), float_of_f16(of_block[8]),
                                float_of_f16(of_block[9])};
        return make_uint4(scaled(bytes.x, 0, scale[0], scale[1]), scaled(bytes.x, 2, scale[2], scale[3]),
                          scaled(bytes.y, 0, scale[0], scale[1]), scaled(bytes.y, 2, scale[2], scale[3]));
    }
};
