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

#pragma once

#include "layout.cuh"

constexpr int PAGE_TOKENS = 16;

// The tokens of one session in a pass: consecutive rows and consecutive positions.
struct Sequence {
    // For each 16 positions the pages of the session's blocks, `blocks` of them.
    const uint32_t* pages;
    int position;
    int tokens;
    int first_row;
    int first_block;
    int blocks;
    int unused;

    // The page of `block` that has `at`.
    __device__ __forceinline__ size_t page(int block, int at) const {
        return pages[static_cast<size_t>(at / PAGE_TOKENS) * blocks + block - first_block];
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
