// Replaces the header of the CUDA toolkit: __half and __half2. Arithmetic is done in float and rounded.
#pragma once

#include "cuda_runtime.h"

namespace cudasim {

CUDASIM_BUILTIN float half_to_float(unsigned short bits) {
    const unsigned sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31, fraction = bits & 1023;
    if (exponent == 31) return __uint_as_float(sign | 0x7f800000u | fraction << 13);
    if (exponent != 0) return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
    const float small = static_cast<float>(fraction) * 0x1p-24f;
    return sign ? -small : small;
}

// Rounds to nearest, ties to even.
CUDASIM_BUILTIN unsigned short float_to_half(float value) {
    const unsigned bits = __float_as_uint(value), sign = bits >> 16 & 0x8000u, rest = bits & 0x7fffffffu;
    if (rest > 0x7f800000u) return static_cast<unsigned short>(sign | 0x7fffu);
    if (rest >= 0x477ff000u) return static_cast<unsigned short>(sign | 0x7c00u);
    if (rest < 0x38800000u) {  // a multiple of 2^-24
        const float scaled = rintf(fabsf(value) * 0x1p24f);
        return static_cast<unsigned short>(sign | static_cast<unsigned>(scaled));
    }
    const unsigned shifted = rest - 0x38000000u;
    return static_cast<unsigned short>(sign | (shifted + 0xfffu + (shifted >> 13 & 1)) >> 13);
}

CUDASIM_BUILTIN float bfloat16_to_float(unsigned short bits) {
    return __uint_as_float(static_cast<unsigned>(bits) << 16);
}

CUDASIM_BUILTIN unsigned short float_to_bfloat16(float value) {
    const unsigned bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fff;
    return static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

}  // namespace cudasim

// A 16-bit type, its pair, and their functions.
#define CUDASIM_SHORT_FLOAT(T, T2, from_float, to_float, half_name, pair_name)                              \
    struct T {                                                                                              \
        unsigned short bits;                                                                                \
        T() = default;                                                                                      \
        template <typename A, typename = std::enable_if_t<std::is_arithmetic_v<A>>>                         \
        T(A v) : bits(from_float(static_cast<float>(v))) {}                                                 \
        operator float() const { return to_float(bits); }                                                   \
        T& operator+=(T o) { return *this = T(float(*this) + float(o)); }                                   \
        T& operator-=(T o) { return *this = T(float(*this) - float(o)); }                                   \
        T& operator*=(T o) { return *this = T(float(*this) * float(o)); }                                   \
        T& operator/=(T o) { return *this = T(float(*this) / float(o)); }                                   \
    };                                                                                                      \
    struct alignas(4) T2 {                                                                                  \
        T x, y;                                                                                             \
        T2() = default;                                                                                     \
        T2(T x, T y) : x(x), y(y) {}                                                                        \
        CUDASIM_COPIES(T2)                                                                                  \
    };                                                                                                      \
    CUDASIM_BUILTIN T operator+(T a, T b) { return T(float(a) + float(b)); }                                \
    CUDASIM_BUILTIN T operator-(T a, T b) { return T(float(a) - float(b)); }                                \
    CUDASIM_BUILTIN T operator*(T a, T b) { return T(float(a) * float(b)); }                                \
    CUDASIM_BUILTIN T operator/(T a, T b) { return T(float(a) / float(b)); }                                \
    CUDASIM_BUILTIN T operator-(T a) { return T(-float(a)); }                                               \
    CUDASIM_BUILTIN T2 operator+(T2 a, T2 b) { return {a.x + b.x, a.y + b.y}; }                             \
    CUDASIM_BUILTIN T2 operator-(T2 a, T2 b) { return {a.x - b.x, a.y - b.y}; }                             \
    CUDASIM_BUILTIN T2 operator*(T2 a, T2 b) { return {a.x * b.x, a.y * b.y}; }                             \
    CUDASIM_BUILTIN T2 operator/(T2 a, T2 b) { return {a.x / b.x, a.y / b.y}; }                             \
    CUDASIM_BUILTIN unsigned short __##half_name##_as_ushort(T v) { return v.bits; }                        \
    CUDASIM_BUILTIN T __ushort_as_##half_name(unsigned short bits) {                                        \
        T result;                                                                                           \
        result.bits = bits;                                                                                 \
        return result;                                                                                      \
    }                                                                                                       \
    CUDASIM_BUILTIN float __##half_name##2float(T v) { return v; }                                          \
    CUDASIM_BUILTIN T __float2##half_name(float v) { return T(v); }                                         \
    CUDASIM_BUILTIN T __float2##half_name##_rn(float v) { return T(v); }                                    \
    CUDASIM_BUILTIN T2 __float2##half_name##2_rn(float v) { return {T(v), T(v)}; }                          \
    CUDASIM_BUILTIN T2 __floats2##half_name##2_rn(float a, float b) { return {T(a), T(b)}; }                \
    CUDASIM_BUILTIN T2 __float22##half_name##2_rn(float2 v) { return {T(v.x), T(v.y)}; }                    \
    CUDASIM_BUILTIN float2 __##half_name##22float2(T2 v) { return {v.x, v.y}; }                             \
    CUDASIM_BUILTIN float __low2float(T2 v) { return v.x; }                                                 \
    CUDASIM_BUILTIN float __high2float(T2 v) { return v.y; }                                                \
    CUDASIM_BUILTIN T __low2##half_name(T2 v) { return v.x; }                                               \
    CUDASIM_BUILTIN T __high2##half_name(T2 v) { return v.y; }                                              \
    CUDASIM_BUILTIN T2 __halves2##half_name##2(T a, T b) { return {a, b}; }                                 \
    CUDASIM_BUILTIN T2 __##half_name##2##half_name##2(T v) { return {v, v}; }                               \
    CUDASIM_BUILTIN T2 make_##pair_name(T a, T b) { return {a, b}; }                                        \
    CUDASIM_BUILTIN T __hadd(T a, T b) { return a + b; }                                                    \
    CUDASIM_BUILTIN T __hsub(T a, T b) { return a - b; }                                                    \
    CUDASIM_BUILTIN T __hmul(T a, T b) { return a * b; }                                                    \
    CUDASIM_BUILTIN T __hdiv(T a, T b) { return a / b; }                                                    \
    CUDASIM_BUILTIN T __hneg(T a) { return -a; }                                                            \
    CUDASIM_BUILTIN T __habs(T a) { return T(fabsf(a)); }                                                   \
    CUDASIM_BUILTIN T __hfma(T a, T b, T c) { return T(fmaf(a, b, c)); }                                    \
    CUDASIM_BUILTIN T __hmax(T a, T b) { return float(a) < float(b) ? b : a; }                              \
    CUDASIM_BUILTIN T __hmin(T a, T b) { return float(b) < float(a) ? b : a; }                              \
    CUDASIM_BUILTIN bool __heq(T a, T b) { return float(a) == float(b); }                                   \
    CUDASIM_BUILTIN bool __hlt(T a, T b) { return float(a) < float(b); }                                    \
    CUDASIM_BUILTIN bool __hle(T a, T b) { return float(a) <= float(b); }                                   \
    CUDASIM_BUILTIN bool __hgt(T a, T b) { return float(a) > float(b); }                                    \
    CUDASIM_BUILTIN bool __hge(T a, T b) { return float(a) >= float(b); }                                   \
    CUDASIM_BUILTIN bool __hisnan(T a) { return float(a) != float(a); }                                     \
    CUDASIM_BUILTIN T hexp(T a) { return T(expf(a)); }                                                      \
    CUDASIM_BUILTIN T hlog(T a) { return T(logf(a)); }                                                      \
    CUDASIM_BUILTIN T hsqrt(T a) { return T(sqrtf(a)); }                                                    \
    CUDASIM_BUILTIN T hrsqrt(T a) { return T(rsqrtf(a)); }                                                  \
    CUDASIM_BUILTIN T2 __hadd2(T2 a, T2 b) { return a + b; }                                                \
    CUDASIM_BUILTIN T2 __hsub2(T2 a, T2 b) { return a - b; }                                                \
    CUDASIM_BUILTIN T2 __hmul2(T2 a, T2 b) { return a * b; }                                                \
    CUDASIM_BUILTIN T2 __hfma2(T2 a, T2 b, T2 c) { return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)}; } \
    CUDASIM_BUILTIN T2 __hmax2(T2 a, T2 b) { return {__hmax(a.x, b.x), __hmax(a.y, b.y)}; }

CUDASIM_SHORT_FLOAT(__half, __half2, cudasim::float_to_half, cudasim::half_to_float, half, half2)
using half = __half;
using half2 = __half2;
CUDASIM_BUILTIN half2 __lowhigh2highlow(half2 v) { return {v.y, v.x}; }
CUDASIM_BUILTIN int __half2int_rn(half v) { return __float2int_rn(v); }
CUDASIM_BUILTIN half __int2half_rn(int v) { return half(v); }
CUDASIM_BUILTIN half __double2half(double v) { return half(static_cast<float>(v)); }
