// The formats of a matrix's cells, and how a lane makes bfloat16 of its share.
//
// Quantized values are scale * number + offset, with scale and offset in bfloat16, rounded once to
// bfloat16. Numbers come out of their bits by way of the bfloat16 128 + number, which has the
// number's bits at its end. The host packs them: engine/src/cuda/pack.rs.

#pragma once

#include "layout.cuh"

constexpr uint32_t BF16X2_128 = 0x43004300u;
constexpr uint32_t BF16X2_ONE = 0x3f803f80u;

// The half of `word` that is wanted, twice.
__device__ __forceinline__ uint32_t low_twice(uint32_t word) { return __byte_perm(word, 0, 0x1010); }
__device__ __forceinline__ uint32_t high_twice(uint32_t word) { return __byte_perm(word, 0, 0x3232); }

// Negated bfloat16 of a small whole number, twice.
__device__ __forceinline__ uint32_t minus(float number) { return bf16x2_of(-number, -number); }

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
    // 128 and the numbers, as pairs.
    __device__ __forceinline__ void unpack(uint32_t (&a)[2][4]) const {
        const uint32_t spread = (extra & 0xff) | (extra & 0xff00) << 8;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint32_t word = half == 0 ? nibbles.x : nibbles.y;
#pragma unroll
            for (int pair = 0; pair < 4; ++pair) {
                const int place = 4 * half + pair;
                uint32_t bits = masked_with(word >> 4 * pair, 0x000f000f, BF16X2_128);
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

// scale * (number - CENTRE): the scales of the rows g and g + 8 share a word.
template <int EXTRA_BITS, int CENTRE>
struct Symmetric {
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
        const uint32_t centre = minus(128 + CENTRE);
        const uint32_t scale[2] = {low_twice(scales), high_twice(scales)};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int pair = 0; pair < 4; ++pair) {
                const uint32_t number = bf16x2_fma(a[half][pair], BF16X2_ONE, centre);
                a[half][pair] = bf16x2_fma(number, scale[pair % 2], 0x80008000u);
            }
        }
    }
};

// scale * number + offset: each row has a word, with the scale in its lower half.
template <int EXTRA_BITS>
struct Affine {
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
        const uint32_t centre = minus(128);
        const uint32_t scale[2] = {low_twice(scales.x), low_twice(scales.y)};
        const uint32_t offset[2] = {high_twice(scales.x), high_twice(scales.y)};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int pair = 0; pair < 4; ++pair) {
                const uint32_t number = bf16x2_fma(a[half][pair], BF16X2_ONE, centre);
                a[half][pair] = bf16x2_fma(number, scale[pair % 2], offset[pair % 2]);
            }
        }
    }
};

// scale * (number - 32) of 6 bits, with a scale for each half of a cell: for each row pair two words.
struct Sixes {
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
        const uint32_t centre = minus(128 + 32);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const uint32_t word = half == 0 ? scales.x : scales.y;
            const uint32_t scale[2] = {low_twice(word), high_twice(word)};
#pragma unroll
            for (int pair = 0; pair < 4; ++pair) {
                const uint32_t number = bf16x2_fma(a[half][pair], BF16X2_ONE, centre);
                a[half][pair] = bf16x2_fma(number, scale[pair % 2], 0x80008000u);
            }
        }
    }
};

// scale * byte, with a sign: of the lane's pairs an even one has the bytes 0 and 2 of a word, the next
// one the bytes 1 and 3.
struct Bytes {
    static constexpr int CELL_BYTES = 512 + 32;
    static constexpr int DEPTH = 8;
    uint4 bytes;
    uint32_t scales;

    template <class Place>
    __device__ __forceinline__ void load(const uint8_t* cell, int lane) {
        bytes = Place::read(reinterpret_cast<const uint4*>(cell) + lane);
        scales = Place::read(reinterpret_cast<const uint32_t*>(cell + 512) + lane / 4);
    }
    // The numbers in the bytes 0 and 2: 128 and their lower seven bits, less 128 or, where there is a
    // sign, 256.
    static __device__ __forceinline__ uint32_t numbers(uint32_t word) {
        const uint32_t centre = masked_with(word, 0x00800080u, 0xc300c300u);
        return bf16x2_fma(masked_with(word, 0x007f007fu, BF16X2_128), BF16X2_ONE, centre);
    }
    __device__ __forceinline__ void unpack(uint32_t (&a)[2][4]) const {
        const uint32_t words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
        const uint32_t scale[2] = {low_twice(scales), high_twice(scales)};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
#pragma unroll
            for (int pair = 0; pair < 4; ++pair) {
                const uint32_t both = numbers(words[half * 2 + pair / 2] >> pair % 2 * 8);
                a[half][pair] = bf16x2_fma(both, scale[pair % 2], 0x80008000u);
            }
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
