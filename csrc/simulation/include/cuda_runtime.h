// Replaces the header of the CUDA toolkit in the simulation. See docs: CUDA without a GPU.
#pragma once

#include <assert.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "../machine.h"

// ---- qualifiers of functions and variables ----

#define __CUDACC__ 1
#define __CUDA_ARCH_LIST__ 900
#ifndef SBNREF_CUDASIM     // PyTorch's headers would assume nvcc
#define __CUDA_ARCH__ 900  // for the host's code too, which is compiled together with the kernels
#endif
#define CUDART_VERSION 13000
#define __CUDA_RUNTIME_H__
#define __DRIVER_TYPES_H__
// Device functions are inlined into the kernel, as with nvcc: GCC does not report a structure that a call returns into
// memory, and a frame that is too large has to be the kernel's.
#define __global__ __attribute__((flatten, noinline))
#define __device__
#define __host__
#define __constant__
#define __managed__
#define __grid_constant__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __maxnreg__(...)
#define __cluster_dims__(...)
#define __align__(n) __attribute__((aligned(n)))
#define CUDART_CB

#define CUDASIM_BUILTIN static inline __attribute__((always_inline, unused))

// Copies in the standard library, which the compiler does not report.
#define memcpy cudasim_memcpy
#define memmove cudasim_memcpy
#define memset cudasim_memset
CUDASIM_BUILTIN void* cudasim_memcpy(void* to, const void* from, size_t n) { return cudasim::copy(to, from, n); }
CUDASIM_BUILTIN void* cudasim_memset(void* to, int value, size_t n) { return cudasim::fill(to, value, n); }
namespace std {
using ::cudasim_memcpy;
using ::cudasim_memset;
}  // namespace std
#if defined(__clang__) && __clang_major__ < 16 && defined(__ELF__)
#if __has_feature(thread_sanitizer)
asm("memcpy = __tsan_memcpy\nmemmove = __tsan_memmove\nmemset = __tsan_memset");  // what later versions call
#endif
#endif

// ---- the place of a thread ----

static const uint3& threadIdx __attribute__((unused)) = cudasim::built_in.thread;
static const uint3& blockIdx __attribute__((unused)) = cudasim::built_in.block;
static const dim3& blockDim __attribute__((unused)) = cudasim::built_in.block_size;
static const dim3& gridDim __attribute__((unused)) = cudasim::built_in.grid_size;
static constexpr int warpSize __attribute__((unused)) = 32;

// ---- vectors ----

// Clang splits structures: a structure that a GPU accesses as a whole reports its own copies.
#ifdef __clang__
#define CUDASIM_COPIES(name)                                                                           \
    __attribute__((always_inline)) name(const name& from) { cudasim::copy(this, &from, sizeof from); } \
    __attribute__((always_inline)) name& operator=(const name& from) {                                 \
        return cudasim::copy(this, &from, sizeof from), *this;                                         \
    }
#define CUDASIM_WHOLE(name, ...)  \
    name() = default;             \
    constexpr name __VA_ARGS__ {} \
    CUDASIM_COPIES(name)
#else
#define CUDASIM_COPIES(name)
#define CUDASIM_WHOLE(...)
#endif
#define CUDASIM_VECTORS(T, name, two, four) \
    struct name##3 { T x, y, z; };          \
    CUDASIM_OTHERS(T, name, two, four)
#define CUDASIM_OTHERS(T, name, two, four)                                                   \
    struct name##1 { T x; };                                                                 \
    struct alignas(two) name##2 {                                                            \
        T x, y;                                                                              \
        CUDASIM_WHOLE(name##2, (T x, T y = {}) : x(x), y(y))                                 \
    };                                                                                       \
    struct alignas(four) name##4 {                                                           \
        T x, y, z, w;                                                                        \
        CUDASIM_WHOLE(name##4, (T x, T y = {}, T z = {}, T w = {}) : x(x), y(y), z(z), w(w)) \
    };                                                                                       \
    CUDASIM_BUILTIN name##1 make_##name##1(T x) { return {x}; }                              \
    CUDASIM_BUILTIN name##2 make_##name##2(T x, T y) { return {x, y}; }                      \
    CUDASIM_BUILTIN name##3 make_##name##3(T x, T y, T z) { return {x, y, z}; }              \
    CUDASIM_BUILTIN name##4 make_##name##4(T x, T y, T z, T w) { return {x, y, z, w}; }
CUDASIM_VECTORS(signed char, char, 2, 4)
CUDASIM_VECTORS(unsigned char, uchar, 2, 4)
CUDASIM_VECTORS(short, short, 4, 8)
CUDASIM_VECTORS(unsigned short, ushort, 4, 8)
CUDASIM_VECTORS(int, int, 8, 16)
CUDASIM_VECTORS(long, long, 16, 16)
CUDASIM_VECTORS(unsigned long, ulong, 16, 16)
CUDASIM_VECTORS(long long, longlong, 16, 16)
CUDASIM_VECTORS(unsigned long long, ulonglong, 16, 16)
CUDASIM_VECTORS(float, float, 8, 16)
CUDASIM_VECTORS(double, double, 16, 16)
CUDASIM_OTHERS(unsigned, uint, 8, 16)
#undef CUDASIM_VECTORS
#undef CUDASIM_OTHERS
#undef CUDASIM_WHOLE

// ---- barriers, fences, warps ----

CUDASIM_BUILTIN void __syncthreads(int line = __builtin_LINE()) {
    cudasim::wait_for_block(cudasim::Vote::Or, false, line);
}
CUDASIM_BUILTIN int __syncthreads_or(int vote, int line = __builtin_LINE()) {
    return cudasim::wait_for_block(cudasim::Vote::Or, vote != 0, line);
}
CUDASIM_BUILTIN int __syncthreads_and(int vote, int line = __builtin_LINE()) {
    return cudasim::wait_for_block(cudasim::Vote::And, vote != 0, line);
}
CUDASIM_BUILTIN int __syncthreads_count(int vote, int line = __builtin_LINE()) {
    return cudasim::wait_for_block(cudasim::Vote::Count, vote != 0, line);
}
CUDASIM_BUILTIN void __threadfence() { cudasim::fence(true); }
CUDASIM_BUILTIN void __threadfence_system() { cudasim::fence(true); }
CUDASIM_BUILTIN void __threadfence_block() { cudasim::fence(false); }
CUDASIM_BUILTIN void __syncwarp(unsigned mask = ~0u) { cudasim::wait_for_warp(mask); }
CUDASIM_BUILTIN unsigned __activemask() { return cudasim::active_lanes(); }

namespace cudasim {

// Exchanges a value; returns the value of another lane.
template <typename T>
__attribute__((always_inline)) inline T from_lane(const char* kind, unsigned mask, T value, unsigned lane) {
    static_assert(sizeof(T) <= 16, "a shuffle exchanges at most 16 bytes");
    exchange(kind, mask, &value, sizeof value, lane);
    receive(lane, &value, sizeof value);
    return value;
}

// Exchanges a value; combines the values of the lanes in the mask, in order.
template <typename T, typename F>
__attribute__((always_inline)) inline T over_lanes(const char* kind, unsigned mask, T value, F f) {
    exchange(kind, mask, &value, sizeof value);
    T result{};
    bool first = true;
    for (unsigned lane = 0; lane < 32; ++lane) {
        T other;
        if (!(mask >> lane & 1) || !receive(lane, &other, sizeof other)) continue;
        result = first ? other : f(result, other);
        first = false;
    }
    return result;
}

}  // namespace cudasim

template <typename T>
CUDASIM_BUILTIN T __shfl_sync(unsigned mask, T value, int lane, int width = 32) {
    const unsigned me = cudasim::built_in.lane, w = static_cast<unsigned>(width);
    return cudasim::from_lane("__shfl_sync", mask, value, me / w * w + static_cast<unsigned>(lane) % w);
}
template <typename T>
CUDASIM_BUILTIN T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const unsigned me = cudasim::built_in.lane;
    return cudasim::from_lane(
        "__shfl_up_sync", mask, value, me % static_cast<unsigned>(width) < delta ? me : me - delta);
}
template <typename T>
CUDASIM_BUILTIN T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32) {
    const unsigned me = cudasim::built_in.lane, w = static_cast<unsigned>(width);
    return cudasim::from_lane("__shfl_down_sync", mask, value, me % w + delta < w ? me + delta : me);
}
template <typename T>
CUDASIM_BUILTIN T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
    const unsigned me = cudasim::built_in.lane, w = static_cast<unsigned>(width),
                   other = me ^ static_cast<unsigned>(bits);
    return cudasim::from_lane("__shfl_xor_sync", mask, value, other / w > me / w ? me : other);
}
CUDASIM_BUILTIN unsigned __ballot_sync(unsigned mask, int vote) {
    const unsigned mine = vote ? 1u << cudasim::built_in.lane : 0;
    return cudasim::over_lanes("__ballot_sync", mask, mine, [](unsigned a, unsigned b) { return a | b; });
}
CUDASIM_BUILTIN int __any_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote) != 0; }
CUDASIM_BUILTIN int __all_sync(unsigned mask, int vote) { return __ballot_sync(mask, !vote) == 0; }
template <typename T>
CUDASIM_BUILTIN unsigned __match_any_sync(unsigned mask, T value) {
    cudasim::exchange("__match_any_sync", mask, &value, sizeof value);
    unsigned same = 0;
    for (unsigned lane = 0; lane < 32; ++lane) {
        T other = value;
        if (mask >> lane & 1 && cudasim::receive(lane, &other, sizeof other) && other == value) same |= 1u << lane;
    }
    return same;
}
#define CUDASIM_REDUCE(name, T, expression)                                                                           \
    CUDASIM_BUILTIN T __reduce_##name##_sync(unsigned mask, T value) {                                                \
        return cudasim::over_lanes("__reduce_" #name "_sync", mask, value, [](T a, T b) -> T { return expression; }); \
    }
CUDASIM_REDUCE(add, unsigned, a + b)
CUDASIM_REDUCE(add, int, a + b)
CUDASIM_REDUCE(min, unsigned, a < b ? a : b)
CUDASIM_REDUCE(min, int, a < b ? a : b)
CUDASIM_REDUCE(max, unsigned, a < b ? b : a)
CUDASIM_REDUCE(max, int, a < b ? b : a)
CUDASIM_REDUCE(and, unsigned, a& b)
CUDASIM_REDUCE(or, unsigned, a | b)
CUDASIM_REDUCE(xor, unsigned, a ^ b)
#undef CUDASIM_REDUCE

// ---- atomic operations ----

namespace cudasim {
template <typename T>
struct Same {
    using type = T;
};
template <typename T>
using Is = typename Same<T>::type;  // an argument that does not take part in deducing T
}  // namespace cudasim

#define CUDASIM_ATOMIC(name, expression)                                             \
    template <typename T>                                                            \
    CUDASIM_BUILTIN T name(T* address, cudasim::Is<T> v) {                           \
        return cudasim::atomically(address, [v](T old) -> T { return expression; }); \
    }                                                                                \
    template <typename T>                                                            \
    CUDASIM_BUILTIN T name##_block(T* address, cudasim::Is<T> v) {                   \
        return name(address, v);                                                     \
    }                                                                                \
    template <typename T>                                                            \
    CUDASIM_BUILTIN T name##_system(T* address, cudasim::Is<T> v) {                  \
        return name(address, v);                                                     \
    }
CUDASIM_ATOMIC(atomicAdd, static_cast<T>(old + v))
CUDASIM_ATOMIC(atomicSub, static_cast<T>(old - v))
CUDASIM_ATOMIC(atomicMin, v < old ? v : old)
CUDASIM_ATOMIC(atomicMax, old < v ? v : old)
CUDASIM_ATOMIC(atomicExch, ((void)old, v))
CUDASIM_ATOMIC(atomicAnd, old& v)
CUDASIM_ATOMIC(atomicOr, old | v)
CUDASIM_ATOMIC(atomicXor, old ^ v)
CUDASIM_ATOMIC(atomicInc, old >= v ? 0 : old + 1)
CUDASIM_ATOMIC(atomicDec, old == 0 || old > v ? v : old - 1)
#undef CUDASIM_ATOMIC
template <typename T>
CUDASIM_BUILTIN T atomicCAS(T* address, cudasim::Is<T> expected, cudasim::Is<T> v) {
    cudasim::verify(address);
    return cudasim::atomically(address, [=](T old) -> T { return old == expected ? v : old; });
}
template <typename T>
CUDASIM_BUILTIN T atomicCAS_block(T* address, cudasim::Is<T> expected, cudasim::Is<T> v) {
    return atomicCAS(address, expected, v);
}
template <typename T>
CUDASIM_BUILTIN T atomicCAS_system(T* address, cudasim::Is<T> expected, cudasim::Is<T> v) {
    return atomicCAS(address, expected, v);
}

// ---- loads and stores with a hint to the caches ----

#define CUDASIM_LOAD(name)               \
    template <typename T>                \
    CUDASIM_BUILTIN T name(const T* p) { \
        return *p;                       \
    }
#define CUDASIM_STORE(name)                             \
    template <typename T>                               \
    CUDASIM_BUILTIN void name(T* p, cudasim::Is<T> v) { \
        *p = v;                                         \
    }
CUDASIM_LOAD(__ldg)
CUDASIM_LOAD(__ldca)
CUDASIM_LOAD(__ldcg)
CUDASIM_LOAD(__ldcs)
CUDASIM_LOAD(__ldcv)
CUDASIM_LOAD(__ldlu)
CUDASIM_STORE(__stwb)
CUDASIM_STORE(__stcg)
CUDASIM_STORE(__stcs)
CUDASIM_STORE(__stwt)
#undef CUDASIM_LOAD
#undef CUDASIM_STORE

// ---- arithmetic ----

template <typename A, typename B, typename = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>>>
CUDASIM_BUILTIN constexpr std::common_type_t<A, B> min(A a, B b) {
    using T = std::common_type_t<A, B>;
    return T(b) < T(a) ? T(b) : T(a);
}
template <typename A, typename B, typename = std::enable_if_t<std::is_arithmetic_v<A> && std::is_arithmetic_v<B>>>
CUDASIM_BUILTIN constexpr std::common_type_t<A, B> max(A a, B b) {
    using T = std::common_type_t<A, B>;
    return T(a) < T(b) ? T(b) : T(a);
}

#define CUDASIM_FLOAT(name, expression) \
    CUDASIM_BUILTIN float name(float x) { return expression; }
CUDASIM_FLOAT(rsqrtf, 1 / sqrtf(x))
CUDASIM_FLOAT(rcbrtf, 1 / cbrtf(x))
CUDASIM_FLOAT(normcdff, 0.5f * erfcf(-x * 0.70710678118654752f))
CUDASIM_FLOAT(sinpif, sinf(3.14159265358979323846f * x))
CUDASIM_FLOAT(cospif, cosf(3.14159265358979323846f * x))
CUDASIM_FLOAT(__frcp_rn, 1 / x)
CUDASIM_FLOAT(__fsqrt_rn, sqrtf(x))
CUDASIM_FLOAT(__frsqrt_rn, 1 / sqrtf(x))
CUDASIM_FLOAT(__saturatef, x < 0 ? 0 : x > 1 ? 1 : x)
#undef CUDASIM_FLOAT
// The C library has functions of these names, but does not export them.
#define __expf expf
#define __exp10f(x) powf(10, x)
#define __logf logf
#define __log2f log2f
#define __log10f log10f
#define __sinf sinf
#define __cosf cosf
#define __tanf tanf
#define __tanhf tanhf
#define __powf powf
#define __sincosf sincosf
CUDASIM_BUILTIN double rsqrt(double x) { return 1 / sqrt(x); }
CUDASIM_BUILTIN float rsqrt(float x) { return 1 / sqrtf(x); }
CUDASIM_BUILTIN double rcbrt(double x) { return 1 / cbrt(x); }
CUDASIM_BUILTIN double normcdf(double x) { return 0.5 * erfc(-x * 0.70710678118654752); }
CUDASIM_BUILTIN double sinpi(double x) { return sin(3.14159265358979323846 * x); }
CUDASIM_BUILTIN double cospi(double x) { return cos(3.14159265358979323846 * x); }
CUDASIM_BUILTIN void sincospif(float x, float* s, float* c) { *s = sinpif(x), *c = cospif(x); }
CUDASIM_BUILTIN float __fdividef(float a, float b) { return a / b; }

// Each operation is rounded by itself: compile with -ffp-contract=off.
#define CUDASIM_ROUNDED(T, prefix)                               \
    CUDASIM_BUILTIN T prefix##add_rn(T a, T b) { return a + b; } \
    CUDASIM_BUILTIN T prefix##sub_rn(T a, T b) { return a - b; } \
    CUDASIM_BUILTIN T prefix##mul_rn(T a, T b) { return a * b; } \
    CUDASIM_BUILTIN T prefix##div_rn(T a, T b) { return a / b; }
CUDASIM_ROUNDED(float, __f)
CUDASIM_ROUNDED(double, __d)
#undef CUDASIM_ROUNDED
CUDASIM_BUILTIN float __fmaf_rn(float a, float b, float c) { return fmaf(a, b, c); }
CUDASIM_BUILTIN double __fma_rn(double a, double b, double c) { return fma(a, b, c); }
CUDASIM_BUILTIN double __drcp_rn(double x) { return 1 / x; }
CUDASIM_BUILTIN double __dsqrt_rn(double x) { return sqrt(x); }

CUDASIM_BUILTIN int __popc(unsigned x) { return __builtin_popcount(x); }
CUDASIM_BUILTIN int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
CUDASIM_BUILTIN int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
CUDASIM_BUILTIN int __clzll(long long x) { return x == 0 ? 64 : __builtin_clzll(static_cast<unsigned long long>(x)); }
CUDASIM_BUILTIN int __ffs(int x) { return __builtin_ffs(x); }
CUDASIM_BUILTIN int __ffsll(long long x) { return __builtin_ffsll(x); }
CUDASIM_BUILTIN unsigned __brev(unsigned x) {
    unsigned result = 0;
    for (int i = 0; i < 32; ++i) result |= (x >> i & 1) << (31 - i);
    return result;
}
CUDASIM_BUILTIN unsigned umin(unsigned a, unsigned b) { return b < a ? b : a; }
CUDASIM_BUILTIN unsigned umax(unsigned a, unsigned b) { return a < b ? b : a; }
CUDASIM_BUILTIN int __mul24(int a, int b) { return a * b; }
CUDASIM_BUILTIN unsigned __umul24(unsigned a, unsigned b) { return a * b; }
CUDASIM_BUILTIN unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>(uint64_t{a} * b >> 32); }
CUDASIM_BUILTIN int __mulhi(int a, int b) { return static_cast<int>(int64_t{a} * b >> 32); }
CUDASIM_BUILTIN unsigned __byte_perm(unsigned a, unsigned b, unsigned s) {
    const uint64_t both = uint64_t{b} << 32 | a;
    unsigned result = 0;
    for (int i = 0; i < 4; ++i) result |= static_cast<unsigned>(both >> (s >> 4 * i & 7) * 8 & 0xff) << 8 * i;
    return result;
}
#define CUDASIM_BITS(name, To, From)             \
    CUDASIM_BUILTIN To name(From from) {         \
        To to;                                   \
        __builtin_memcpy(&to, &from, sizeof to); \
        return to;                               \
    }
CUDASIM_BITS(__float_as_int, int, float)
CUDASIM_BITS(__float_as_uint, unsigned, float)
CUDASIM_BITS(__int_as_float, float, int)
CUDASIM_BITS(__uint_as_float, float, unsigned)
CUDASIM_BITS(__double_as_longlong, long long, double)
CUDASIM_BITS(__longlong_as_double, double, long long)
#undef CUDASIM_BITS
#define CUDASIM_ROUND(name, To, From, expression) \
    CUDASIM_BUILTIN To name(From x) { return static_cast<To>(expression); }
CUDASIM_ROUND(__float2int_rn, int, float, rintf(x))
CUDASIM_ROUND(__float2int_rz, int, float, truncf(x))
CUDASIM_ROUND(__float2int_rd, int, float, floorf(x))
CUDASIM_ROUND(__float2int_ru, int, float, ceilf(x))
CUDASIM_ROUND(__float2uint_rn, unsigned, float, rintf(x))
CUDASIM_ROUND(__float2uint_rz, unsigned, float, truncf(x))
CUDASIM_ROUND(__int2float_rn, float, int, x)
CUDASIM_ROUND(__uint2float_rn, float, unsigned, x)
CUDASIM_ROUND(__double2float_rn, float, double, x)
CUDASIM_ROUND(__double2int_rn, int, double, rint(x))
#undef CUDASIM_ROUND

long long clock64();
CUDASIM_BUILTIN void __nanosleep(unsigned) {}
CUDASIM_BUILTIN void __trap() { cudasim::fail("executes __trap()"); }
CUDASIM_BUILTIN void __prof_trigger(int) {}

// ---- the runtime ----

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInvalidDevicePointer = 17,
    cudaErrorInsufficientDriver = 35,
    cudaErrorNoDevice = 100,
    cudaErrorInvalidDevice = 101,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorNotReady = 600,
    cudaErrorIllegalAddress = 700,
    cudaErrorLaunchOutOfResources = 701,
    cudaErrorLaunchTimeout = 702,
    cudaErrorAssert = 710,
    cudaErrorLaunchFailure = 719,
    cudaErrorCooperativeLaunchTooLarge = 720,
    cudaErrorNotSupported = 801,
    cudaErrorUnknown = 999,
};
using cudaError = cudaError_t;
enum cudaMemcpyKind {
    cudaMemcpyHostToHost,
    cudaMemcpyHostToDevice,
    cudaMemcpyDeviceToHost,
    cudaMemcpyDeviceToDevice,
    cudaMemcpyDefault
};
enum cudaDeviceAttr {
    cudaDevAttrMaxThreadsPerBlock = 1,
    cudaDevAttrMaxSharedMemoryPerBlock = 8,
    cudaDevAttrWarpSize = 10,
    cudaDevAttrClockRate = 13,
    cudaDevAttrGpuOverlap = 15,
    cudaDevAttrMultiProcessorCount = 16,
    cudaDevAttrKernelExecTimeout = 17,
    cudaDevAttrIntegrated = 18,
    cudaDevAttrCanMapHostMemory = 19,
    cudaDevAttrComputeMode = 20,
    cudaDevAttrConcurrentKernels = 31,
    cudaDevAttrMemoryClockRate = 36,
    cudaDevAttrGlobalMemoryBusWidth = 37,
    cudaDevAttrL2CacheSize = 38,
    cudaDevAttrMaxThreadsPerMultiProcessor = 39,
    cudaDevAttrUnifiedAddressing = 41,
    cudaDevAttrComputeCapabilityMajor = 75,
    cudaDevAttrComputeCapabilityMinor = 76,
    cudaDevAttrStreamPrioritiesSupported = 78,
    cudaDevAttrManagedMemory = 83,
    cudaDevAttrHostNativeAtomicSupported = 86,
    cudaDevAttrConcurrentManagedAccess = 89,
    cudaDevAttrCooperativeLaunch = 95,
    cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
    cudaDevAttrMemoryPoolsSupported = 115,
};
enum cudaComputeMode { cudaComputeModeDefault, cudaComputeModeExclusive, cudaComputeModeProhibited };
enum cudaDeviceP2PAttr {
    cudaDevP2PAttrPerformanceRank = 1,
    cudaDevP2PAttrAccessSupported = 2,
    cudaDevP2PAttrNativeAtomicSupported = 3,
};
enum cudaLimit { cudaLimitStackSize, cudaLimitPrintfFifoSize, cudaLimitMallocHeapSize };
enum cudaFuncAttribute {
    cudaFuncAttributeMaxDynamicSharedMemorySize = 8,
    cudaFuncAttributePreferredSharedMemoryCarveout = 9
};
enum cudaFuncCache {
    cudaFuncCachePreferNone,
    cudaFuncCachePreferShared,
    cudaFuncCachePreferL1,
    cudaFuncCachePreferEqual
};
enum cudaSharedMemConfig {
    cudaSharedMemBankSizeDefault,
    cudaSharedMemBankSizeFourByte,
    cudaSharedMemBankSizeEightByte
};
constexpr unsigned cudaStreamDefault = 0, cudaStreamNonBlocking = 1, cudaEventDefault = 0, cudaEventBlockingSync = 1,
                   cudaEventDisableTiming = 2, cudaHostAllocDefault = 0, cudaHostAllocPortable = 1,
                   cudaHostAllocMapped = 2, cudaHostAllocWriteCombined = 4, cudaHostRegisterDefault = 0,
                   cudaHostRegisterPortable = 1, cudaHostRegisterMapped = 2, cudaMemAttachGlobal = 1,
                   cudaMemAttachHost = 2, cudaMemAttachSingle = 4, cudaDeviceScheduleAuto = 0,
                   cudaDeviceScheduleSpin = 1, cudaDeviceScheduleYield = 2, cudaDeviceScheduleBlockingSync = 4,
                   cudaDeviceBlockingSync = 4, cudaDeviceMapHost = 8;
enum cudaMemLocationType { cudaMemLocationTypeInvalid, cudaMemLocationTypeDevice, cudaMemLocationTypeHost };
struct cudaMemLocation {
    cudaMemLocationType type;
    int id;
};
enum cudaMemoryAdvise {
    cudaMemAdviseSetReadMostly = 1,
    cudaMemAdviseUnsetReadMostly = 2,
    cudaMemAdviseSetPreferredLocation = 3,
    cudaMemAdviseUnsetPreferredLocation = 4,
    cudaMemAdviseSetAccessedBy = 5,
    cudaMemAdviseUnsetAccessedBy = 6,
};
constexpr int cudaCpuDeviceId = -1, cudaInvalidDeviceId = -2;

// The numbers of an H100.
struct cudaDeviceProp {
    char name[256] = "simulated GPU with the numbers of an H100";
    size_t totalGlobalMem = size_t{80} << 30, sharedMemPerBlock = 48 << 10, totalConstMem = 64 << 10;
    size_t sharedMemPerMultiprocessor = 228 << 10, sharedMemPerBlockOptin = 227 << 10, reservedSharedMemPerBlock = 1024;
    int regsPerBlock = 65536, regsPerMultiprocessor = 65536, warpSize = 32, maxThreadsPerBlock = 1024;
    int maxThreadsDim[3] = {1024, 1024, 64}, maxGridSize[3] = {2147483647, 65535, 65535};
    int major = 9, minor = 0, multiProcessorCount = 132, maxThreadsPerMultiProcessor = 2048;
    int maxBlocksPerMultiProcessor = 32, l2CacheSize = 50 << 20, memoryBusWidth = 5120;
    int clockRate = 1'755'000, memoryClockRate = 2'619'000;  // kHz
    int concurrentKernels = 1, asyncEngineCount = 3, unifiedAddressing = 1, managedMemory = 1, integrated = 0;
    int canMapHostMemory = 1, ECCEnabled = 1, computeMode = 0, cooperativeLaunch = 1, concurrentManagedAccess = 1;
    int deviceOverlap = 1, kernelExecTimeoutEnabled = 0, pciBusID = 0, pciDeviceID = 0, pciDomainID = 0;
    int hostNativeAtomicSupported = 0, pageableMemoryAccess = 0;
    int computePreemptionSupported = 1, cooperativeMultiDeviceLaunch = 0, streamPrioritiesSupported = 1, tccDriver = 0;
    size_t memPitch = 2147483647, textureAlignment = 512, surfaceAlignment = 512;
    int maxTexture1D = 0, maxTexture2D[2] = {}, maxTexture3D[3] = {}, maxTexture1DLayered[2] = {};  // no textures
    int maxTexture2DLayered[3] = {};
};

using cudaStream_t = struct cudasim_stream*;
using cudaEvent_t = struct cudasim_event*;
#define cudaStreamLegacy ((cudaStream_t)1)
#define cudaStreamPerThread ((cudaStream_t)2)

namespace cudasim {
cudaError_t allocate_for(void** p, size_t bytes, const char* expression, size_t element, bool host);
cudaError_t error_of_launch();
cudaError_t copy_between(void* to, const void* from, size_t bytes, cudaMemcpyKind kind);

template <typename T>
constexpr size_t size_of = sizeof(T);
template <>
inline constexpr size_t size_of<void> = 1;

template <typename T>
__attribute__((always_inline)) inline cudaError_t allocate_named(
    T** p, size_t bytes, const char* expression, bool host = false) {
    void* memory = nullptr;
    const cudaError_t error = allocate_for(&memory, bytes, expression, size_of<T>, host);
    *p = static_cast<T*>(memory);
    return error;
}
}  // namespace cudasim

// Names an array after the program's pointer to it.
#define cudaMalloc(p, ...) cudasim::allocate_named(p, (__VA_ARGS__), #p)
#define cudaMallocAsync(p, bytes, stream) cudasim::allocate_named(p, bytes, #p)
#define cudaMallocManaged(p, ...) cudasim::allocate_named(p, CUDASIM_FIRST(__VA_ARGS__, ), #p, true)
#define CUDASIM_FIRST(first, ...) first

// Kernels may access pinned memory of the host.
#define cudaMallocHost(p, ...) cudasim::allocate_named(p, CUDASIM_FIRST(__VA_ARGS__, ), #p, true)
#define cudaHostAlloc(p, bytes, flags) cudasim::allocate_named(p, bytes, #p, true)
cudaError_t cudaHostRegister(void* p, size_t bytes, unsigned flags);
cudaError_t cudaHostUnregister(void* p);
template <typename T>
CUDASIM_BUILTIN cudaError_t cudaHostGetDevicePointer(T** of_device, void* p, unsigned) {
    return *of_device = static_cast<T*>(p), cudaSuccess;
}
template <typename T>
CUDASIM_BUILTIN cudaError_t cudaMallocPitch(T** p, size_t* pitch, size_t width, size_t height) {
    *pitch = (width + 511) / 512 * 512;
    return cudasim::allocate_named(p, *pitch * height, "a pitched array");
}

cudaError_t cudaFree(void* p);
CUDASIM_BUILTIN cudaError_t cudaFreeHost(void* p) { return cudaFree(p); }
cudaError_t cudaMemset(void* p, int value, size_t bytes);
cudaError_t cudaMemcpy2D(
    void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height, cudaMemcpyKind kind);
CUDASIM_BUILTIN cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    return cudasim::copy_between(to, from, bytes, kind);
}
CUDASIM_BUILTIN cudaError_t
cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t = nullptr) {
    return cudasim::copy_between(to, from, bytes, kind);
}
CUDASIM_BUILTIN cudaError_t cudaMemsetAsync(void* p, int value, size_t bytes, cudaStream_t = nullptr) {
    return cudaMemset(p, value, bytes);
}
CUDASIM_BUILTIN cudaError_t cudaFreeAsync(void* p, cudaStream_t) { return cudaFree(p); }
using cudaMemPool_t = struct cudasim_pool*;
enum cudaMemPoolAttr { cudaMemPoolAttrReleaseThreshold = 4 };
CUDASIM_BUILTIN cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* p, int) { return *p = nullptr, cudaSuccess; }
CUDASIM_BUILTIN cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t, cudaMemPoolAttr, void*) { return cudaSuccess; }
template <typename T>
CUDASIM_BUILTIN cudaError_t cudaMemcpyToSymbol(
    T& symbol, const void* from, size_t bytes, size_t offset = 0, cudaMemcpyKind = cudaMemcpyHostToDevice) {
    return cudasim::copy_between((char*)&symbol + offset, from, bytes, cudaMemcpyDefault);
}
template <typename T>
CUDASIM_BUILTIN cudaError_t cudaMemcpyFromSymbol(
    void* to, const T& symbol, size_t bytes, size_t offset = 0, cudaMemcpyKind = cudaMemcpyDeviceToHost) {
    return cudasim::copy_between(to, (const char*)&symbol + offset, bytes, cudaMemcpyDefault);
}
template <typename T>
CUDASIM_BUILTIN cudaError_t cudaGetSymbolAddress(void** p, T& symbol) {
    return *p = (void*)&symbol, cudaSuccess;
}
template <typename T>
CUDASIM_BUILTIN cudaError_t cudaGetSymbolSize(size_t* size, const T&) {
    return *size = sizeof(T), cudaSuccess;
}

cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();
const char* cudaGetErrorString(cudaError_t error);
const char* cudaGetErrorName(cudaError_t error);
cudaError_t cudaDeviceSynchronize();
CUDASIM_BUILTIN cudaError_t cudaThreadSynchronize() { return cudaDeviceSynchronize(); }
CUDASIM_BUILTIN cudaError_t cudaDeviceReset() { return cudaSuccess; }
cudaError_t cudaSetDevice(int device);
CUDASIM_BUILTIN cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
CUDASIM_BUILTIN cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaMemGetInfo(size_t* free, size_t* total);
CUDASIM_BUILTIN cudaError_t cudaSetDeviceFlags(unsigned) { return cudaSuccess; }
CUDASIM_BUILTIN cudaError_t cudaDeviceSetCacheConfig(cudaFuncCache) { return cudaSuccess; }
CUDASIM_BUILTIN cudaError_t cudaDeviceSetSharedMemConfig(cudaSharedMemConfig) { return cudaSuccess; }
CUDASIM_BUILTIN cudaError_t cudaDriverGetVersion(int* v) { return *v = CUDART_VERSION, cudaSuccess; }
CUDASIM_BUILTIN cudaError_t cudaRuntimeGetVersion(int* v) { return *v = CUDART_VERSION, cudaSuccess; }
CUDASIM_BUILTIN cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { return *can = 0, cudaSuccess; }
CUDASIM_BUILTIN cudaError_t cudaMemPrefetchAsync(const void*, size_t, int, cudaStream_t = nullptr) {
    return cudaSuccess;
}
CUDASIM_BUILTIN cudaError_t
cudaMemPrefetchAsync(const void*, size_t, cudaMemLocation, unsigned, cudaStream_t = nullptr) {
    return cudaSuccess;
}
template <typename Location>
CUDASIM_BUILTIN cudaError_t cudaMemAdvise(const void*, size_t, cudaMemoryAdvise, Location) {
    return cudaSuccess;
}
CUDASIM_BUILTIN cudaError_t cudaDeviceEnablePeerAccess(int, unsigned) { return cudaErrorInvalidDevice; }
CUDASIM_BUILTIN cudaError_t cudaDeviceDisablePeerAccess(int) { return cudaErrorInvalidDevice; }
CUDASIM_BUILTIN cudaError_t cudaDeviceGetP2PAttribute(int* value, cudaDeviceP2PAttr, int, int) {
    return *value = 0, cudaErrorInvalidDevice;
}
CUDASIM_BUILTIN cudaError_t cudaMemcpyPeer(void* to, int, const void* from, int, size_t bytes) {
    return cudasim::copy_between(to, from, bytes, cudaMemcpyDeviceToDevice);
}
CUDASIM_BUILTIN cudaError_t cudaDeviceSetLimit(cudaLimit, size_t) { return cudaSuccess; }
CUDASIM_BUILTIN cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
    return *least = 0, *greatest = -5, cudaSuccess;
}
CUDASIM_BUILTIN cudaError_t cudaProfilerStart() { return cudaSuccess; }
CUDASIM_BUILTIN cudaError_t cudaProfilerStop() { return cudaSuccess; }

cudaError_t cudaStreamCreate(cudaStream_t* stream);
CUDASIM_BUILTIN cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned) { return cudaStreamCreate(s); }
CUDASIM_BUILTIN cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned, int) { return cudaStreamCreate(s); }
CUDASIM_BUILTIN cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
CUDASIM_BUILTIN cudaError_t cudaStreamSynchronize(cudaStream_t) { return cudaDeviceSynchronize(); }
CUDASIM_BUILTIN cudaError_t cudaStreamQuery(cudaStream_t) { return cudaSuccess; }
CUDASIM_BUILTIN cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) { return *priority = 0, cudaSuccess; }
template <typename T>
CUDASIM_BUILTIN cudaError_t cudaStreamAttachMemAsync(cudaStream_t, T*, size_t = 0, unsigned = cudaMemAttachSingle) {
    return cudaSuccess;
}
CUDASIM_BUILTIN cudaError_t
cudaStreamAddCallback(cudaStream_t stream, void (*f)(cudaStream_t, cudaError_t, void*), void* data, unsigned) {
    return f(stream, cudaPeekAtLastError(), data), cudaSuccess;
}
CUDASIM_BUILTIN cudaError_t cudaLaunchHostFunc(cudaStream_t, void (*f)(void*), void* data) {
    return f(data), cudaSuccess;
}
CUDASIM_BUILTIN cudaError_t cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned = 0) { return cudaSuccess; }
cudaError_t cudaEventCreate(cudaEvent_t* event);
CUDASIM_BUILTIN cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned) { return cudaEventCreate(e); }
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream = nullptr);
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t start, cudaEvent_t stop);
CUDASIM_BUILTIN cudaError_t cudaEventSynchronize(cudaEvent_t) { return cudaDeviceSynchronize(); }
CUDASIM_BUILTIN cudaError_t cudaEventQuery(cudaEvent_t) { return cudaSuccess; }

struct cudaFuncAttributes {
    size_t sharedSizeBytes = 0, constSizeBytes = 0, localSizeBytes = 0;
    int maxThreadsPerBlock = 1024, numRegs = 32, ptxVersion = 90, binaryVersion = 90;
};
template <typename F>
CUDASIM_BUILTIN cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* a, F) {
    return *a = {}, cudaSuccess;
}
template <typename F>
CUDASIM_BUILTIN cudaError_t cudaFuncSetAttribute(F, cudaFuncAttribute attribute, int value) {
    if (attribute == cudaFuncAttributeMaxDynamicSharedMemorySize) cudasim::allow_dynamic_shared(value);
    return cudaSuccess;
}
template <typename F>
CUDASIM_BUILTIN cudaError_t cudaFuncSetCacheConfig(F, cudaFuncCache) {
    return cudaSuccess;
}
template <typename F>
CUDASIM_BUILTIN cudaError_t cudaFuncSetSharedMemConfig(F, cudaSharedMemConfig) {
    return cudaSuccess;
}
template <typename F>
CUDASIM_BUILTIN cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, F, int size, size_t shared = 0) {
    const int by_threads = 2048 / std::max(size, 1),
              by_memory = static_cast<int>((size_t{228} << 10) / (shared + 1024));
    return *blocks = std::min({by_threads, by_memory, 32}), cudaSuccess;
}
template <typename F>
CUDASIM_BUILTIN cudaError_t cudaOccupancyMaxPotentialBlockSize(int* grid, int* size, F, size_t = 0, int limit = 0) {
    *size = limit > 0 ? std::min(limit, 1024) : 1024;
    return *grid = 132 * 2048 / *size, cudaSuccess;
}

// The replacements of cudaLaunchKernel and cudaLaunchCooperativeKernel.
namespace cudasim {
template <typename... P, size_t... I>
cudaError_t launch_pointers(
    const char* name, int line, Config config, void (*kernel)(P...), void** arguments, std::index_sequence<I...>) {
    launcher(name, line, config, kernel)(*static_cast<std::remove_reference_t<P>*>(arguments[I])...);
    return error_of_launch();
}
template <typename... P>
cudaError_t launch_Kernel(
    const char* name, int line, void (*kernel)(P...), dim3 grid, dim3 block, void** arguments, size_t shared = 0,
    cudaStream_t = nullptr) {
    return launch_pointers(name, line, {grid, block, shared}, kernel, arguments, std::index_sequence_for<P...>{});
}
template <typename... P>
cudaError_t launch_CooperativeKernel(
    const char* name, int line, void (*kernel)(P...), dim3 grid, dim3 block, void** arguments, size_t shared = 0,
    cudaStream_t = nullptr) {
    Config config{grid, block, shared};
    config.cooperative = true;
    return launch_pointers(name, line, config, kernel, arguments, std::index_sequence_for<P...>{});
}
}  // namespace cudasim
