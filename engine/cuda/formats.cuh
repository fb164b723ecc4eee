// The formats of a matrix's cells, and how a lane makes bfloat16 of its share.
//
// Quantized values are scale * number + offset, with scale and offset in bfloat16, rounded once to
// bfloat16. The bits of a number from 0 to 255 are themselves a bfloat16, of number * 2^-133: one below
// all normal ones, or among the first of these. So nothing has to be made of them, and what a kernel
// multiplies with is 2^133 times as large. As a scale has no room for that, values come out 2^-32 times
// as large, which is exact, and so are the sums of their products; scales in memory are 2^101 times as
// large, offsets 2^-32 times. The host packs them: engine/src/cuda/cells.rs.

#pragma once

#include "layout.cuh"

// What values of quantized formats, and their sums, are multiplied with at last: 2^32, in binary32 and
// twice in bfloat16.
constexpr float WHOLE = 4294967296.0f;
constexpr uint32_t BF16X2_WHOLE = 0x4f804f80u;

constexpr uint32_t BF16X2_MINUS_ZERO = 0x80008000u;

// scale * -centre, for numbers about a centre, in both halves of which the scale is.
template <uint32_t CENTRE>
__device__ __forceinline__ uint32_t offset_of(uint32_t scale) {
    return bf16x2_fma(scale, BF16X2_MINUS_ZERO | CENTRE << 16 | CENTRE, BF16X2_MINUS_ZERO);
}

// Where packed cells are read: once from the device's memory, or from shared memory.
struct FromMemory {
    template <class T>
    static __device__ __forceinline__ T read(const T* from) {
        return load_once(from);
    }
};
struct FromShared {
    template <class T>
    static __device__ __forceinline__ T read(const T* from) {
        return *from;
    }
};

// bfloat16 as they are: for each half of a cell the four words that the matrix unit takes.
struct Bf16 {
    static constexpr bool IS_WHOLE = true;
    static constexpr int CELL_BYTES = 1024;
    static constexpr int DEPTH = 4;
    uint4 halves[2];

    template <class Place>
    __device__ __forceinline__ void load(const uint8_t* cell, int lane) {
        halves[0] = Place::read(reinterpret_cast<const uint4*>(cell) + lane);
        halves[1] = Place::read(reinterpret_cast<const uint4*>(cell) + WARP + lane);
    }
    __device__ __forceinline__ void unpack(uint32_t (&a)[2][4]) const {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            a[half][0] = halves[half].x;
            a[half][1] = halves[half].y;
            a[half][2] = halves[half].z;
            a[half][3] = halves[half].w;
        }
    }
};

// binary16, rounded to bfloat16 on their way to the matrix unit.
struct F16 {
    static constexpr bool IS_WHOLE = true;
    static constexpr int CELL_BYTES = 1024;
    static constexpr int DEPTH = 4;
    Bf16 raw;

    template <class Place>
    __device__ __forceinline__ void load(const uint8_t* cell, int lane) { raw.template load<Place>(cell, lane); }
    __device__ __forceinline__ void unpack(uint32_t (&a)[2][4]) const {
        raw.unpack(a);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int word = 0; word < 4; ++word) {
                const uint32_t both = a[half][word];
                a[half][word] = bf16x2_of(float_of_f16(both & 0xffff), float_of_f16(both >> 16));
            }
        }
    }
};

// Numbers of 4 bits, with 1 or 2 more each in a plane of their own.
//
// Of the lane's 8 pairs, pair p = 4 * half + word has its numbers at the bits 4 * word and
// 16 + 4 * word of the word `half`; its further bits are at p and 8 + p (one each), or at 2p and
// 16 + 2p (two each).
template <int EXTRA_BITS>
struct Numbers {
    static constexpr int BYTES = 256 + EXTRA_BITS * 64;
    // Numbers of 4 bits of every other pair, those of the rows 8 to 15, are left at the bits from 4 on,
    // which are 16 times as much: the scales of these rows are that much less in memory.
    static constexpr int LEFT_BITS = EXTRA_BITS == 0 ? 4 : 0;
    uint2 nibbles;
    uint32_t extra;

    template <class Place>
    __device__ __forceinline__ void load(const uint8_t* cell, int lane) {
        nibbles = Place::read(reinterpret_cast<const uint2*>(cell) + lane);
        if (EXTRA_BITS == 1) {
            extra = Place::read(reinterpret_cast<const uint16_t*>(cell + 256) + lane);
        } else if (EXTRA_BITS == 2) {
            extra = Place::read(reinterpret_cast<const uint32_t*>(cell + 256) + lane);
        }
    }
    __device__ __forceinline__ void unpack(uint32_t (&a)[2][4]) const {
        const uint32_t spread = (extra & 0xff) | (extra & 0xff00) << 8;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint32_t word = half == 0 ? nibbles.x : nibbles.y;
#pragma unroll
            for (int pair = 0; pair < 4; ++pair) {
                const int place = 4 * half + pair, left = pair % 2 * LEFT_BITS;
                uint32_t bits = word >> (4 * pair - left) & 0x000f000fu << left;
                if (EXTRA_BITS == 1) {
                    bits = masked_with(spread << 4 >> place, 0x00100010, bits);
                } else if (EXTRA_BITS == 2) {
                    const uint32_t above = place < 2 ? extra << (4 - 2 * place) : extra >> (2 * place - 4);
                    bits = masked_with(above, 0x00300030, bits);
                }
                a[half][pair] = bits;
            }
        }
    }
};

// Makes values of a half's numbers, of which every other pair is of the rows g and of g + 8.
__device__ __forceinline__ void scale_half(uint32_t (&half)[4], const uint32_t (&scale)[2],
                                           const uint32_t (&offset)[2]) {
#pragma unroll
    for (int pair = 0; pair < 4; ++pair) {
        half[pair] = bf16x2_fma(half[pair], scale[pair % 2], offset[pair % 2]);
    }
}

// scale * (number - CENTRE): the scales of the rows g and g + 8 share a word.
template <int EXTRA_BITS, uint32_t CENTRE>
struct Symmetric {
    static constexpr bool IS_WHOLE = false;
    static constexpr int CELL_BYTES = Numbers<EXTRA_BITS>::BYTES + 32;
    static constexpr int DEPTH = 8;
    Numbers<EXTRA_BITS> numbers;
    uint32_t scales;

    template <class Place>
    __device__ __forceinline__ void load(const uint8_t* cell, int lane) {
        numbers.template load<Place>(cell, lane);
        const uint8_t* scales_of_cell = cell + Numbers<EXTRA_BITS>::BYTES;
        scales = Place::read(reinterpret_cast<const uint32_t*>(scales_of_cell) + lane / 4);
    }
    __device__ __forceinline__ void unpack(uint32_t (&a)[2][4]) const {
        numbers.unpack(a);
        const uint32_t scale[2] = {low_twice(scales), high_twice(scales)};
        const uint32_t offset[2] = {offset_of<CENTRE>(scale[0]),
                                    offset_of<CENTRE << Numbers<EXTRA_BITS>::LEFT_BITS>(scale[1])};
        scale_half(a[0], scale, offset);
        scale_half(a[1], scale, offset);
    }
};

// scale * number + offset: each row has a word, with the scale in its lower half.
template <int EXTRA_BITS>
struct Affine {
    static constexpr bool IS_WHOLE = false;
    static constexpr int CELL_BYTES = Numbers<EXTRA_BITS>::BYTES + 64;
    static constexpr int DEPTH = 8;
    Numbers<EXTRA_BITS> numbers;
    uint2 scales;

    template <class Place>
    __device__ __forceinline__ void load(const uint8_t* cell, int lane) {
        numbers.template load<Place>(cell, lane);
        const uint8_t* scales_of_cell = cell + Numbers<EXTRA_BITS>::BYTES;
        scales = Place::read(reinterpret_cast<const uint2*>(scales_of_cell) + lane / 4);
    }
    __device__ __forceinline__ void unpack(uint32_t (&a)[2][4]) const {
        numbers.unpack(a);
        const uint32_t scale[2] = {low_twice(scales.x), low_twice(scales.y)};
        const uint32_t offset[2] = {high_twice(scales.x), high_twice(scales.y)};
        scale_half(a[0], scale, offset);
        scale_half(a[1], scale, offset);
    }
};

// scale * (number - 32) of 6 bits, with a scale for each half of a cell: for each row pair two words.
struct Sixes {
    static constexpr bool IS_WHOLE = false;
    static constexpr int CELL_BYTES = Numbers<2>::BYTES + 64;
    static constexpr int DEPTH = 8;
    Numbers<2> numbers;
    uint2 scales;

    template <class Place>
    __device__ __forceinline__ void load(const uint8_t* cell, int lane) {
        numbers.template load<Place>(cell, lane);
        scales = Place::read(reinterpret_cast<const uint2*>(cell + Numbers<2>::BYTES) + lane / 4);
    }
    __device__ __forceinline__ void unpack(uint32_t (&a)[2][4]) const {
        numbers.unpack(a);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint32_t word = half == 0 ? scales.x : scales.y;
            const uint32_t scale[2] = {low_twice(word), high_twice(word)};
            const uint32_t offset[2] = {offset_of<32>(scale[0]), offset_of<32>(scale[1])};
            scale_half(a[half], scale, offset);
        }
    }
};

// scale * (byte - 128): of the lane's pairs an even one has the bytes 0 and 2 of a word, the next one
// the bytes 1 and 3.
struct Bytes {
    static constexpr bool IS_WHOLE = false;
    static constexpr int CELL_BYTES = 512 + 32;
    static constexpr int DEPTH = 8;
    uint4 bytes;
    uint32_t scales;

    template <class Place>
    __device__ __forceinline__ void load(const uint8_t* cell, int lane) {
        bytes = Place::read(reinterpret_cast<const uint4*>(cell) + lane);
        scales = Place::read(reinterpret_cast<const uint32_t*>(cell + 512) + lane / 4);
    }
    __device__ __forceinline__ void unpack(uint32_t (&a)[2][4]) const {
        const uint32_t words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
        const uint32_t scale[2] = {low_twice(scales), high_twice(scales)};
        const uint32_t offset[2] = {offset_of<128>(scale[0]), offset_of<128>(scale[1])};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int pair = 0; pair < 4; ++pair) {
                const uint32_t word = words[half * 2 + pair / 2];
                a[half][pair] = pair % 2 == 0 ? word & 0x00ff00ffu : __byte_perm(word, 0, 0x4341);
            }
            scale_half(a[half], scale, offset);
        }
    }
};

// Every format with the name that its kernels bear.
#define FOR_EACH_FORMAT(DO)  \
    DO(bf16, Bf16)           \
    DO(f16, F16)             \
    FOR_EACH_QUANTIZED(DO)

#define FOR_EACH_QUANTIZED(DO)       \
    DO(q4_symmetric, Symmetric4)     \
    DO(q4_affine, Affine<0>)         \
    DO(q5_symmetric, Symmetric5)     \
    DO(q5_affine, Affine<1>)         \
    DO(q6, Sixes)                    \
    DO(q8, Bytes)

using Symmetric4 = Symmetric<0, 8>;
using Symmetric5 = Symmetric<1, 16>;
