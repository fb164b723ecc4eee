// The arithmetic of the device, bit for bit where CUDA defines the bits. The approximate functions
// (`__expf`, `__fdividef`, `exp2_fast`) give the value of the C library, which is nearer to the
// truth than the device's.
#pragma once

#include <bit>
#include <cmath>
#include <cstdint>
#include <type_traits>

// A macro, since new C libraries declare a function of this name.
#define rsqrtf(x) (1.0f / ::std::sqrt(x))

inline uint32_t __float_as_uint(float x) { return std::bit_cast<uint32_t>(x); }
inline float __uint_as_float(uint32_t x) { return std::bit_cast<float>(x); }
inline int __float_as_int(float x) { return std::bit_cast<int>(x); }
inline float __int_as_float(int x) { return std::bit_cast<float>(x); }

// The library is compiled without contraction, so that a product and a sum stay two roundings.
inline float __fmaf_rn(float a, float b, float c) { return std::fma(a, b, c); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __frcp_rn(float x) { return 1.0f / x; }
inline float __fsqrt_rn(float x) { return std::sqrt(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float exp2_fast(float x) { return std::exp2(x); }

inline int __float2int_rn(float x) { return static_cast<int>(std::nearbyint(x)); }
inline float __int2float_rn(int x) { return static_cast<float>(x); }
inline float __uint2float_rn(uint32_t x) { return static_cast<float>(x); }

inline int __popc(uint32_t x) { return std::popcount(x); }
inline int __clz(uint32_t x) { return std::countl_zero(x); }
inline int __ffs(uint32_t x) { return x == 0 ? 0 : std::countr_zero(x) + 1; }

// Four bytes of the eight of `high:low`, each chosen by a nibble of `selector`, whose highest bit
// asks for eight copies of the sign instead.
inline uint32_t __byte_perm(uint32_t low, uint32_t high, uint32_t selector) {
    const uint64_t bytes = static_cast<uint64_t>(high) << 32 | low;
    uint32_t result = 0;
    for (int i = 0; i < 4; i++) {
        const uint32_t nibble = selector >> (4 * i) & 0xf;
        uint32_t byte = bytes >> (8 * (nibble & 7)) & 0xff;
        if (nibble & 8) {
            byte = byte & 0x80 ? 0xff : 0;
        }
        result |= byte << (8 * i);
    }
    return result;
}

inline uint32_t __funnelshift_r(uint32_t low, uint32_t high, uint32_t shift) {
    return (static_cast<uint64_t>(high) << 32 | low) >> (shift & 31);
}

inline uint32_t __funnelshift_l(uint32_t low, uint32_t high, uint32_t shift) {
    return (static_cast<uint64_t>(high) << 32 | low) << (shift & 31) >> 32;
}

// The sum of the products of four signed bytes, added to `sum`.
inline int __dp4a(int a, int b, int sum) {
    for (int i = 0; i < 4; i++) {
        sum += static_cast<int8_t>(a >> (8 * i)) * static_cast<int8_t>(b >> (8 * i));
    }
    return sum;
}

template <typename A, typename B>
constexpr std::common_type_t<A, B> min(A a, B b) {
    using T = std::common_type_t<A, B>;
    return static_cast<T>(b) < static_cast<T>(a) ? static_cast<T>(b) : static_cast<T>(a);
}

template <typename A, typename B>
constexpr std::common_type_t<A, B> max(A a, B b) {
    using T = std::common_type_t<A, B>;
    return static_cast<T>(a) < static_cast<T>(b) ? static_cast<T>(b) : static_cast<T>(a);
}

template <typename T>
T __ldg(const T* from) { return *from; }
template <typename T>
T __ldcg(const T* from) { return *from; }
template <typename T>
T __ldcs(const T* from) { return *from; }
template <typename T>
void __stcs(T* to, T value) { *to = value; }
template <typename T>
T load_once(const T* from) { return *from; }
template <typename T>
T load_changed(const T* from) { return *from; }
template <typename T>
T load_changed_once(const T* from) { return *from; }

namespace umbel_emulated {

// The nearest bfloat16, ties to even; every NaN becomes the one that the device writes.
inline uint16_t bf16_of(float x) {
    if (std::isnan(x)) {
        return 0x7fff;
    }
    const uint32_t bits = __float_as_uint(x);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

inline float float_of_bf16(uint32_t bits) { return __uint_as_float(bits << 16); }

// `a * b + c` rounded once. The product of two bfloat16 is exact in binary64. What the sum and the
// conversion to binary32 lose is kept in their last bit (rounding to odd), so that the final
// rounding sees on which side of a tie the exact value lies.
inline uint16_t bf16_fma(float a, float b, float c) {
    const double product = static_cast<double>(a) * b;
    double sum = product + c;
    if (std::isnan(sum) || std::isinf(sum)) {
        return bf16_of(static_cast<float>(sum));
    }
    const double part = sum - product;
    const double lost = (product - (sum - part)) + (c - part);
    if (lost != 0 && (std::bit_cast<uint64_t>(sum) & 1) == 0) {
        sum = std::nextafter(sum, lost > 0 ? INFINITY : -INFINITY);
    }
    float near = static_cast<float>(sum);
    if (near != sum) {
        if (std::abs(static_cast<double>(near)) > std::abs(sum)) {
            near = std::nextafter(near, 0.0f);
        }
        near = __uint_as_float(__float_as_uint(near) | 1);
    }
    return bf16_of(near);
}

}  // namespace umbel_emulated

inline uint32_t bf16x2_of(float low, float high) {
    using umbel_emulated::bf16_of;
    return static_cast<uint32_t>(bf16_of(high)) << 16 | bf16_of(low);
}

inline uint32_t bf16x2_fma(uint32_t a, uint32_t b, uint32_t c) {
    using namespace umbel_emulated;
    const auto half = [=](int shift) -> uint32_t {
        return bf16_fma(float_of_bf16(a >> shift & 0xffff), float_of_bf16(b >> shift & 0xffff),
                        float_of_bf16(c >> shift & 0xffff));
    };
    return half(16) << 16 | half(0);
}

// The nearest binary16, ties to even, infinite from 65520 on.
inline uint16_t f16_of(float x) {
    const uint16_t sign = __float_as_uint(x) >> 16 & 0x8000;
    const float size = std::abs(x);
    if (std::isnan(x)) {
        return 0x7fff;
    }
    if (size >= 65520.0f) {
        return sign | 0x7c00;
    }
    if (size < 0x1p-14f) {
        // Subnormal: the last bit is worth 2^-24, and so is that of 0.5 in binary32.
        return sign | (__float_as_uint(size + 0.5f) - __float_as_uint(0.5f));
    }
    const uint32_t bits = __float_as_uint(size) - (112u << 23);
    return sign | (bits + 0xfff + (bits >> 13 & 1)) >> 13;
}

inline float float_of_f16(uint16_t bits) {
    const uint32_t sign = static_cast<uint32_t>(bits & 0x8000) << 16;
    const uint32_t exponent = bits >> 10 & 0x1f;
    const uint32_t fraction = bits & 0x3ff;
    if (exponent == 0) {
        return __uint_as_float(sign | __float_as_uint(static_cast<float>(fraction) * 0x1p-24f));
    }
    if (exponent == 31) {
        return __uint_as_float(sign | 0x7f800000 | fraction << 13);
    }
    return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
}
