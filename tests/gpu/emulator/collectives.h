// What threads of a warp or of a block do together: barriers, shuffles, votes, matrix products, and
// the copies that a thread starts now and waits for later. `block.cc` brings the lanes together;
// here is what each collective computes once they are.
#pragma once

#include <cstdint>
#include <cstring>
#include <functional>
#include <source_location>

namespace umbel_emulated {

using Place = std::source_location;

// What a lane brings to a collective, and where it finds the result.
struct Call {
    const char* name;
    uint32_t mask;
    // Computes the results of all lanes of the mask, from and into their `data`.
    void (*complete)(void* const (&data)[32], uint32_t mask);
    void* data;
    // Whether all lanes have to come from the same line.
    bool one_place;
    Place place;
};

// Waits for the other lanes of the mask, of whom the last one computes for all.
void meet(const Call& call);
void meet_block(const Place& place);

void* dynamic_shared();
void copy_later(void* shared, const void* global, bool valid, const Place& place);
void commit_copies();
void wait_for_copies(unsigned groups_left);
// Copies that a whole block waits for, by a barrier; the bytes of those that are done now.
void copy_bulk_later(void* shared, const void* global, uint32_t bytes, const void* barrier, const Place& place);
size_t finish_bulk_copies(const void* barrier);
// Lets other threads run until the condition holds.
void wait_until(const std::function<bool()>& holds, const char* name, const Place& place);
[[noreturn]] void trap(const Place& place);

constexpr uint32_t WHOLE_WARP = 0xffffffff;

template <typename F>
void for_lanes(uint32_t mask, F f) {
    for (unsigned lane = 0; lane < 32; lane++) {
        if (mask >> lane & 1) {
            f(lane);
        }
    }
}

struct MatrixProduct {
    float d[4];
    uint32_t a[4];
    uint32_t b[2];
};

void multiply_matrices(void* const (&data)[32], uint32_t mask);

// The value that a lane offers, the lane that it asks, and the answer.
template <typename T>
struct Shuffle {
    T value;
    unsigned from;
    T result;
};

template <typename T>
void exchange(void* const (&data)[32], uint32_t mask) {
    for_lanes(mask, [&](unsigned lane) {
        auto& mine = *static_cast<Shuffle<T>*>(data[lane]);
        const bool there = mine.from < 32 && (mask >> mine.from & 1);
        if (there) {
            mine.result = static_cast<Shuffle<T>*>(data[mine.from])->value;
        } else {
            // A lane outside the mask: the value is undefined, and a NaN where that exists.
            std::memset(&mine.result, 0xff, sizeof(T));
        }
    });
}

template <typename T>
T shuffle(const char* name, uint32_t mask, T value, unsigned from, const Place& place) {
    Shuffle<T> mine{value, from, value};
    meet({name, mask, exchange<T>, &mine, false, place});
    return mine.result;
}

// The sums of lanes that are 16 apart, then 8, 4, 2 and 1.
inline void sum_lanes(void* const (&data)[32], uint32_t) {
    float sums[32];
    for (unsigned lane = 0; lane < 32; lane++) {
        sums[lane] = *static_cast<float*>(data[lane]);
    }
    for (unsigned distance = 16; distance > 0; distance /= 2) {
        float next[32];
        for (unsigned lane = 0; lane < 32; lane++) {
            next[lane] = sums[lane] + sums[lane ^ distance];
        }
        std::memcpy(sums, next, sizeof sums);
    }
    for (unsigned lane = 0; lane < 32; lane++) {
        *static_cast<float*>(data[lane]) = sums[lane];
    }
}

struct Vote {
    bool holds;
    uint32_t result;
};

inline void count_votes(void* const (&data)[32], uint32_t mask) {
    uint32_t votes = 0;
    for_lanes(mask, [&](unsigned lane) {
        votes |= static_cast<uint32_t>(static_cast<Vote*>(data[lane])->holds) << lane;
    });
    for_lanes(mask, [&](unsigned lane) { static_cast<Vote*>(data[lane])->result = votes; });
}

inline uint32_t vote(const char* name, uint32_t mask, bool holds, const Place& place) {
    Vote mine{holds, 0};
    meet({name, mask, count_votes, &mine, false, place});
    return mine.result;
}

inline void nothing(void* const (&)[32], uint32_t) {}

unsigned lane();

}  // namespace umbel_emulated

#define UMBEL_HERE ::umbel_emulated::Place place = ::umbel_emulated::Place::current()

inline void __syncthreads(UMBEL_HERE) { umbel_emulated::meet_block(place); }

inline void __syncwarp(uint32_t mask = ~0u, UMBEL_HERE) {
    umbel_emulated::meet({"__syncwarp", mask, umbel_emulated::nothing, nullptr, false, place});
}

template <typename T>
T __shfl_sync(uint32_t mask, T value, int from, int = 32, UMBEL_HERE) {
    return umbel_emulated::shuffle("__shfl_sync", mask, value, from & 31, place);
}

template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, int bits, int = 32, UMBEL_HERE) {
    const unsigned from = umbel_emulated::lane() ^ bits;
    return umbel_emulated::shuffle("__shfl_xor_sync", mask, value, from, place);
}

// A lane that would ask beyond the warp keeps its own value.
template <typename T>
T __shfl_down_sync(uint32_t mask, T value, unsigned by, int = 32, UMBEL_HERE) {
    const unsigned lane = umbel_emulated::lane();
    const unsigned from = lane + by < 32 ? lane + by : lane;
    return umbel_emulated::shuffle("__shfl_down_sync", mask, value, from, place);
}

template <typename T>
T __shfl_up_sync(uint32_t mask, T value, unsigned by, int = 32, UMBEL_HERE) {
    const unsigned lane = umbel_emulated::lane();
    const unsigned from = by <= lane ? lane - by : lane;
    return umbel_emulated::shuffle("__shfl_up_sync", mask, value, from, place);
}

inline uint32_t __ballot_sync(uint32_t mask, bool holds, UMBEL_HERE) {
    return umbel_emulated::vote("__ballot_sync", mask, holds, place);
}

inline bool __any_sync(uint32_t mask, bool holds, UMBEL_HERE) {
    return umbel_emulated::vote("__any_sync", mask, holds, place) != 0;
}

inline bool __all_sync(uint32_t mask, bool holds, UMBEL_HERE) {
    return umbel_emulated::vote("__all_sync", mask, holds, place) == mask;
}

inline float warp_sum(float value, UMBEL_HERE) {
    umbel_emulated::meet({"warp_sum", umbel_emulated::WHOLE_WARP, umbel_emulated::sum_lanes, &value, false, place});
    return value;
}

inline uint32_t low_twice(uint32_t word) { return (word & 0xffff) * 0x10001u; }
inline uint32_t high_twice(uint32_t word) { return (word >> 16) * 0x10001u; }
inline uint32_t masked_with(uint32_t word, uint32_t mask, uint32_t bits) { return (word & mask) | bits; }

// d += a * b, of 16x16 and 16x8 bfloat16, in the fragments of mma.sync.aligned.m16n8k16.row.col.
inline void mma_bf16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2], UMBEL_HERE) {
    umbel_emulated::MatrixProduct mine{
        {d[0], d[1], d[2], d[3]}, {a[0], a[1], a[2], a[3]}, {b[0], b[1]}};
    umbel_emulated::meet({"mma_bf16", umbel_emulated::WHOLE_WARP, umbel_emulated::multiply_matrices,
                          &mine, true, place});
    std::memcpy(d, mine.d, sizeof mine.d);
}

// What four warps multiply together where there are such units; here each warp by itself, and at once.
inline void group_mma_bf16(float (&sums)[64], const uint32_t (&a)[4], const void* b, UMBEL_HERE) {
    const auto lane = threadIdx.x % 32;
    for (int tile = 0; tile < 16; tile++) {
        const auto* cores = static_cast<const uint32_t*>(b) + tile * 512 + lane;
        float of_tile[4];
        std::memcpy(of_tile, sums + tile * 4, sizeof of_tile);
        mma_bf16(of_tile, a, {cores[0], cores[32]}, place);
        std::memcpy(sums + tile * 4, of_tile, sizeof of_tile);
    }
}

struct Barrier {
    uint32_t arrivals;
    int32_t missing;
    int32_t bytes;
    uint32_t phase;

    void begin(uint32_t count, UMBEL_HERE) {
        *this = {count, static_cast<int32_t>(count), 0, 0};
        (void)place;
    }
    void arrive() { missing--; }
    void arrive_where(bool does) { missing -= does; }
    void arrive_with(uint32_t more) {
        bytes += static_cast<int32_t>(more);
        missing--;
    }
    void wait(uint32_t parity, UMBEL_HERE) {
        umbel_emulated::wait_until(
            [&] {
                bytes -= static_cast<int32_t>(umbel_emulated::finish_bulk_copies(this));
                if (missing == 0 && bytes == 0) {
                    missing = static_cast<int32_t>(arrivals);
                    phase++;
                }
                return phase % 2 != parity;
            },
            "Barrier::wait", place);
    }
};

inline void copy_bulk(void* shared, const void* global, uint32_t bytes, Barrier& barrier, UMBEL_HERE) {
    umbel_emulated::copy_bulk_later(shared, global, bytes, &barrier, place);
}

inline void group_mma_fence() {}
inline void group_mma_commit() {}
inline void group_mma_wait(float (&)[64]) {}

// There is no cache, but what is brought there has to be memory of the device.
inline void prefetch_bulk(const void* global, uint32_t bytes) {
    volatile const char* const begin = static_cast<const char*>(global);
    (void)begin[0];
    (void)begin[bytes - 1];
}

// Kernels run one after the other.
inline void grid_wait() {}
inline void grid_release() {}

inline void copy_async_16(void* shared, const void* global, UMBEL_HERE) {
    umbel_emulated::copy_later(shared, global, true, place);
}

inline void copy_async_16(void* shared, const void* global, bool valid, UMBEL_HERE) {
    umbel_emulated::copy_later(shared, global, valid, place);
}

inline void copy_async_commit() { umbel_emulated::commit_copies(); }

template <int N>
void copy_async_wait() {
    umbel_emulated::wait_for_copies(N);
}

inline void __trap(UMBEL_HERE) { umbel_emulated::trap(place); }
inline void __threadfence() {}

// Threads switch only in collectives, so that plain code is atomic.
template <typename T>
T atomicAdd(T* at, T value) {
    const T before = *at;
    *at = before + value;
    return before;
}

template <typename T>
T atomicMax(T* at, T value) {
    const T before = *at;
    *at = before < value ? value : before;
    return before;
}

#undef UMBEL_HERE
