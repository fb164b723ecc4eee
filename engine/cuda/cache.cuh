// The paged cache of keys and values, and the sequences of a pass.
//
// A page has 16 positions of one block: for each head its keys, then for each head its values. In
// bfloat16 both lie as the matrix unit wants them, and a head's size is padded to a multiple of 32:
//
// - keys in groups of 8 positions and 32 values, of which lane 4 * g + t has the values 8t to 8t + 7
//   of position g;
// - values in groups of 16 of their numbers and all 16 positions, of which lane 4 * g + t has the
//   numbers g and g + 8 at the positions 2t, 2t + 1, 2t + 8 and 2t + 9.
//
// In binary32 both are [positions, size].
//
// Of a session that keeps 8 bits, the integers of some blocks share a page, and so do the scales of some
// more, in other pages: see BytePage. The integers lie in the order above, the scales as [sides, heads,
// 32 values, positions] in binary16.

#pragma once

#include "layout.cuh"

constexpr int PAGE_TOKENS = 16;

// The tokens of one session in a pass: consecutive rows and consecutive positions.
struct Sequence {
    // For each 16 positions the pages of the session's blocks, `page_count` of them.
    const uint32_t* pages;
    int position;
    int tokens;
    int first_row;
    int first_block;
    int blocks;
    int page_count;

    // The page of `block` that has `at`, where each block has one of its own.
    __device__ __forceinline__ uint32_t page(int block, int at) const { return listed(at, block - first_block); }
    // The page `index` of those of `at`.
    __device__ __forceinline__ uint32_t listed(int at, int index) const {
        return pages[at / PAGE_TOKENS * page_count + index];
    }
};

// The shape of attention in a model.
struct Shape {
    int heads;
    int kv_heads;
    int head_size;
    // The most recent positions that a token sees; 0 for all.
    int window;

    // The size of a head in pages of bfloat16.
    __device__ __forceinline__ int padded() const { return (head_size + 31) / 32 * 32; }
    // Elements of the keys of a page, which are as many as those of its values.
    __device__ __forceinline__ size_t side(int size) const {
        return static_cast<size_t>(kv_heads) * PAGE_TOKENS * size;
    }
    // The first position that a token at `position` sees.
    __device__ __forceinline__ int first_seen(int position) const {
        return window > 0 && position >= window ? position - window + 1 : 0;
    }
};

// Values that have a scale together.
constexpr int SCALED_TOGETHER = 32;

// Bytes of a value where pages are in bfloat16, and where they are in binary32.
constexpr int BF16_PAGES = 2;
constexpr int F32_PAGES = 4;

// Where a block's keys and values in 8 bits lie, in bytes from the first page on: first come the pages of
// integers, of as many blocks each as fit, and behind them those of scales.
struct BytePage {
    size_t quants;
    size_t scales;

    // `size` is that of a head where it is padded, `value_bytes` what a value takes in pages of the others.
    __device__ __forceinline__ BytePage(const Shape& shape, const Sequence& sequence, int size, int value_bytes,
                                        int block, int at) {
        const unsigned both = 2 * shape.kv_heads * PAGE_TOKENS;
        const unsigned page_bytes = both * size * value_bytes, quant_bytes = both * size;
        const unsigned scale_bytes = both * ((size + SCALED_TOGETHER - 1) / SCALED_TOGETHER) * 2;
        const unsigned scales_together = page_bytes / scale_bytes, index = block - sequence.first_block;
        const unsigned quant_pages = (sequence.blocks + value_bytes - 1) / value_bytes;
        const uint32_t of_quants = sequence.listed(at, index / value_bytes);
        const uint32_t of_scales = sequence.listed(at, quant_pages + index / scales_together);
        quants = static_cast<size_t>(of_quants) * page_bytes + index % value_bytes * quant_bytes;
        scales = static_cast<size_t>(of_scales) * page_bytes + index % scales_together * scale_bytes;
    }
};

// Where a key's value and a value's number lie among those of a head, in bfloat16.
__device__ __forceinline__ int key_place(int slot, int value, int padded) {
    const int group = slot / 8 * (padded / 32) + value / 32;
    const int lane = slot % 8 * 4 + value % 32 / 8;
    return (group * WARP + lane) * 8 + value % 8;
}

__device__ __forceinline__ int value_place(int slot, int number) {
    const int lane = number % 8 * 4 + slot % 8 / 2;
    return ((number / 16 * WARP + lane) * 2 + number % 16 / 8) * 4 + slot / 8 * 2 + slot % 2;
}
