// Vectors of sixteen floats or eight doubles, and conversions from and to the types in memory.
//
// A Lanes is 64 bytes of numbers for one operation: one register with AVX-512, two with AVX, four with SSE or NEON.
// Every CPU adds up in the same lanes, and no multiplication is fused with an addition, so the same input gives the
// same bits on all CPUs.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "../elements.h"

#define SBNREF_INLINE inline __attribute__((always_inline))

namespace sbnref::cpu {

#if defined(__AVX512F__)
constexpr int kRegisterBytes = 64;
#elif defined(__AVX2__)
constexpr int kRegisterBytes = 32;
#else
constexpr int kRegisterBytes = 16;
#endif
constexpr int kLanesBytes = 64;
constexpr int kRegisters = kLanesBytes / kRegisterBytes;  // in a Lanes

// A register: `bytes` of numbers for one operation (GNU C's vector extension).
template <typename N, int bytes = kRegisterBytes>
struct RegisterOf {
    typedef N type __attribute__((vector_size(bytes)));
};
template <typename N, int bytes = kRegisterBytes>
using Register = typename RegisterOf<N, bytes>::type;

template <typename A>
struct Lanes {
    static constexpr int kCount = kLanesBytes / sizeof(A);
    static constexpr int kPerRegister = kCount / kRegisters;

    Register<A> part[kRegisters];
};

// ---- arithmetic ----

template <typename A>
SBNREF_INLINE Lanes<A> operator+(Lanes<A> a, const Lanes<A>& b) {
#pragma GCC unroll 4
    for (int i = 0; i < kRegisters; ++i) a.part[i] += b.part[i];
    return a;
}

template <typename A>
SBNREF_INLINE Lanes<A> operator-(Lanes<A> a, const Lanes<A>& b) {
#pragma GCC unroll 4
    for (int i = 0; i < kRegisters; ++i) a.part[i] -= b.part[i];
    return a;
}

template <typename A>
SBNREF_INLINE Lanes<A> operator*(Lanes<A> a, const Lanes<A>& b) {
#pragma GCC unroll 4
    for (int i = 0; i < kRegisters; ++i) a.part[i] *= b.part[i];
    return a;
}

template <typename A>
SBNREF_INLINE Lanes<A> all(A value) {
    Lanes<A> lanes;
#pragma GCC unroll 4
    for (int i = 0; i < kRegisters; ++i) lanes.part[i] = value - Register<A>{};
    return lanes;
}

// The first n lanes, and zeros for the rest.
template <typename A>
SBNREF_INLINE Lanes<A> keep(Lanes<A> lanes, int64_t n) {
    using Bits = std::conditional_t<sizeof(A) == 4, int32_t, int64_t>;
    constexpr int P = Lanes<A>::kPerRegister;
#pragma GCC unroll 4
    for (int i = 0; i < kRegisters; ++i) {
        Register<Bits> lane;
#pragma GCC unroll 16
        for (int j = 0; j < P; ++j) lane[j] = i * P + j;
        const Register<Bits> kept = lane < static_cast<Bits>(n);
        lanes.part[i] = (Register<A>)((Register<Bits>)lanes.part[i] & kept);
    }
    return lanes;
}

// The sum over the lanes, in float64.
template <typename A>
SBNREF_INLINE double sum(const Lanes<A>& lanes) {
    A values[Lanes<A>::kCount];
    std::memcpy(values, &lanes, sizeof(lanes));
    double sums[4] = {};
    for (int i = 0; i < Lanes<A>::kCount; i += 4)
        for (int j = 0; j < 4; ++j) sums[j] += values[i + j];
    return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

// ---- loads and stores, which widen and round halves ----

template <typename T>
SBNREF_INLINE auto load_register(const T* from) {  // float, double
    Register<T> numbers;
    std::memcpy(&numbers, from, kRegisterBytes);
    return numbers;
}

// A bfloat16 is the upper half of a float.
SBNREF_INLINE Register<float> load_register(const c10::BFloat16* from) {
#if defined(__AVX512F__)
    const auto upper = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__AVX2__)
    const auto upper = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
    Register<uint16_t, kRegisterBytes / 2> narrow;
    std::memcpy(&narrow, from, sizeof(narrow));
    const auto upper = __builtin_convertvector(narrow, Register<uint32_t>);
#endif
    return (Register<float>)((Register<uint32_t>)upper << 16);
}

SBNREF_INLINE Register<float> load_register(const c10::Half* from) {
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__AVX2__) && defined(__F16C__)
    return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#else
    Register<float> numbers;
    for (int j = 0; j < Lanes<float>::kPerRegister; ++j) numbers[j] = static_cast<float>(from[j]);
    return numbers;
#endif
}

template <typename T>
SBNREF_INLINE Lanes<Accumulator<T>> load(const T* from) {
    Lanes<Accumulator<T>> lanes;
#pragma GCC unroll 4
    for (int i = 0; i < kRegisters; ++i)  // register by register: for 64 bytes at once a compiler copies through memory
        lanes.part[i] = load_register(from + i * Lanes<Accumulator<T>>::kPerRegister);
    return lanes;
}

template <typename T>
SBNREF_INLINE void store(T* to, const Lanes<T>& lanes) {
#pragma GCC unroll 4
    for (int i = 0; i < kRegisters; ++i) std::memcpy(to + i * Lanes<T>::kPerRegister, &lanes.part[i], kRegisterBytes);
}

// Rounds to nearest, ties to even: a lower half above half a unit carries into the upper half. A NaN with all ones in
// its lower half would become a number, but no NaN here has that: see Coefficients::set.
SBNREF_INLINE void store(c10::BFloat16* to, const Lanes<float>& lanes) {
    Register<uint32_t> upper[kRegisters];
#pragma GCC unroll 4
    for (int i = 0; i < kRegisters; ++i) {
        const auto bits = (Register<uint32_t>)lanes.part[i];
        upper[i] = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    }
#if defined(__AVX2__) && !defined(__AVX512F__)  // AVX2 packs within each half of a register
    const auto packed = _mm256_packus_epi32((__m256i)upper[0], (__m256i)upper[1]);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm256_permute4x64_epi64(packed, 0b11011000));
#else
#pragma GCC unroll 4
    for (int i = 0; i < kRegisters; ++i) {
        const auto narrow = __builtin_convertvector(upper[i], Register<uint16_t, kRegisterBytes / 2>);
        std::memcpy(to + i * Lanes<float>::kPerRegister, &narrow, sizeof(narrow));
    }
#endif
}

SBNREF_INLINE void store(c10::Half* to, const Lanes<float>& lanes) {
    constexpr int P = Lanes<float>::kPerRegister;
#pragma GCC unroll 4
    for (int i = 0; i < kRegisters; ++i) {
#if defined(__AVX512F__)
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + i * P), _mm512_cvtps_ph(lanes.part[i], 0));
#elif defined(__AVX2__) && defined(__F16C__)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i * P), _mm256_cvtps_ph(lanes.part[i], 0));
#else
        for (int j = 0; j < P; ++j) to[i * P + j] = static_cast<c10::Half>(static_cast<float>(lanes.part[i][j]));
#endif
    }
}

// Loads n elements of an array that ends at `end`. The lanes after them hold the memory that follows.
template <typename T>
SBNREF_INLINE Lanes<Accumulator<T>> load(const T* from, int64_t n, const T* end) {
    constexpr int K = Lanes<Accumulator<T>>::kCount;
    if (end - from >= K) return load(from);
    T padded[K] = {};
    std::memcpy(static_cast<void*>(padded), from, n * sizeof(T));
    return load(padded);
}

// Stores the first n lanes to an array that ends at `end`. It may overwrite the elements that follow.
template <typename T>
SBNREF_INLINE void store(T* to, const Lanes<Accumulator<T>>& lanes, int64_t n, const T* end) {
    constexpr int K = Lanes<Accumulator<T>>::kCount;
    if (end - to >= K) return store(to, lanes);
    T padded[K];
    store(padded, lanes);
    std::memcpy(static_cast<void*>(to), padded, n * sizeof(T));
}

}  // namespace sbnref::cpu
