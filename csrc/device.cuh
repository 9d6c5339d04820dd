// What the kernels are written in: global memory behind checked arrays, vectors, arithmetic, the launch. The same
// source is compiled by nvcc for the GPU and, with SBNREF_CUDASIM, by the host's compiler for the simulation.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <type_traits>

#include "stages.h"

#ifdef SBNREF_CUDASIM
#include "sim/cudasim.h"
#else
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#endif

namespace sbnref {

constexpr int kWarp = 32;

// ---- shared memory and the launch: the two things that are spelled differently on the GPU and in the simulation ----

#ifdef SBNREF_CUDASIM

#define SHARED_ARRAY(T, name, size) auto& name = cudasim::shared_array<T>(#name, size)
#define DYNAMIC_SHARED_ARRAY(T, name) auto& name = cudasim::dynamic_shared_array<T>(#name)
template <typename T>
using SharedArray = cudasim::Shared<T>&;

template <typename... Parameters, typename... Arguments>
void launch(
    const char* name, void (*kernel)(Parameters...), const Plan& plan, int64_t shared_bytes, Stream,
    const Arguments&... arguments) {
    cudasim::launch(name, plan.blocks(), plan.threads, shared_bytes, [&] { kernel(arguments...); });
}

#else

#define SHARED_ARRAY(T, name, size) __shared__ T name[size]
#define DYNAMIC_SHARED_ARRAY(T, name)         \
    extern __shared__ __align__(kAccessBytes) \
    char name##_raw[];                        \
    T* const name = reinterpret_cast<T*>(name##_raw)
template <typename T>
using SharedArray = T*;

template <typename... Parameters, typename... Arguments>
void launch(
    const char* name, void (*kernel)(Parameters...), const Plan& plan, int64_t shared_bytes, Stream stream,
    const Arguments&... arguments) {
    kernel<<<static_cast<unsigned>(plan.blocks()), plan.threads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(
        arguments...);
    if (const cudaError_t error = cudaGetLastError(); error != cudaSuccess)
        throw std::runtime_error(std::string("launching the kernel ") + name + ": " + cudaGetErrorString(error));
}

#endif

// threadIdx.x and blockIdx.x, read afresh every time: what is derived from them is then computed again where it is
// needed rather than kept in registers over the loops.
#ifdef SBNREF_CUDASIM
inline unsigned thread_index() { return threadIdx.x; }
inline unsigned block_index() { return blockIdx.x; }
#else
__device__ __forceinline__ unsigned thread_index() {
    unsigned index;
    asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
    return index;
}
__device__ __forceinline__ unsigned block_index() {
    unsigned index;
    asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(index));
    return index;
}
#endif

// ---- global memory: every access of a kernel goes through these, so that the simulation can check and count it ----

template <typename T>
struct Array {
    T* data;
    int64_t size;
};

template <typename T>
__host__ __device__ Array<T> as(const Buffer& buffer) {
    return {static_cast<T*>(buffer.data), buffer.size};
}

template <typename T, int V>
struct alignas(sizeof(T) * V) Vector {
    T at[V];
};

template <int V, typename T>
__device__ __forceinline__ Vector<T, V> load_vector(Array<const T> array, int64_t i) {
#ifdef SBNREF_CUDASIM
    cudasim::check_access(array.data, array.size, i, V, sizeof(T), cudasim::Access::Read);
#endif
    return *reinterpret_cast<const Vector<T, V>*>(array.data + i);
}

template <int V, typename T>
__device__ __forceinline__ void store_vector(Array<T> array, int64_t i, const Vector<T, V>& value) {
#ifdef SBNREF_CUDASIM
    cudasim::check_access(array.data, array.size, i, V, sizeof(T), cudasim::Access::Write);
#endif
    *reinterpret_cast<Vector<T, V>*>(array.data + i) = value;
}

template <typename T>
__device__ __forceinline__ T load(Array<const T> array, int64_t i) {
    return load_vector<1>(array, i).at[0];
}

template <typename T>
__device__ __forceinline__ void store(Array<T> array, int64_t i, T value) {
    store_vector<1>(array, i, Vector<T, 1>{{value}});
}

// Counts array[i] from 0 to last and back to 0; returns the count before.
__device__ __forceinline__ unsigned take_ticket(Array<unsigned> array, int64_t i, unsigned last) {
#ifdef SBNREF_CUDASIM
    cudasim::check_access(array.data, array.size, i, 1, sizeof(unsigned), cudasim::Access::Write);
#endif
    return atomicInc(array.data + i, last);
}

// What is per channel is read and written in float64, whatever it is stored in.
__device__ inline double load_channel(const Buffer& buffer, int64_t channel) {
    const int64_t i = channel * buffer.stride;
    switch (buffer.dtype) {
        case Dtype::Half: return static_cast<float>(load(as<const c10::Half>(buffer), i));
        case Dtype::BFloat16: return static_cast<float>(load(as<const c10::BFloat16>(buffer), i));
        case Dtype::Float: return load(as<const float>(buffer), i);
        default: return load(as<const double>(buffer), i);
    }
}

__device__ inline void store_channel(const Buffer& buffer, int64_t channel, double value) {
    const int64_t i = channel * buffer.stride;
    switch (buffer.dtype) {
        case Dtype::Half: return store(as<c10::Half>(buffer), i, c10::Half(static_cast<float>(value)));
        case Dtype::BFloat16: return store(as<c10::BFloat16>(buffer), i, c10::BFloat16(static_cast<float>(value)));
        case Dtype::Float: return store(as<float>(buffer), i, static_cast<float>(value));
        default: return store(as<double>(buffer), i, value);
    }
}

// ---- arithmetic ----

// Elements are handled in float, and in double where they are double.
template <typename T>
struct AccumulatorOf {
    using type = float;
};
template <>
struct AccumulatorOf<double> {
    using type = double;
};
template <typename T>
using Accumulator = typename AccumulatorOf<T>::type;

// Element i of a vector, in the accumulator's type. Two halves are unpacked from the 32-bit register that holds them:
// converted one by one, the compiler gives each a register of its own.
template <typename T, int V>
__device__ __forceinline__ Accumulator<T> element(const Vector<T, V>& vector, int i) {
#ifndef SBNREF_CUDASIM
    if constexpr (sizeof(T) == 2 && V > 1) {
        const unsigned word = reinterpret_cast<const unsigned*>(&vector)[i / 2];
        if constexpr (std::is_same_v<T, c10::BFloat16>)
            return __uint_as_float(i % 2 ? word & 0xffff0000u : word << 16);
        else
            return __half2float(__ushort_as_half(static_cast<unsigned short>(i % 2 ? word >> 16 : word)));
    }
#endif
    return static_cast<Accumulator<T>>(vector.at[i]);
}

// 1 / n for a count n, without the slow paths of a division: exact to 2 units in the last place.
__device__ inline float reciprocal(float n) { return __fdividef(1.0f, n); }
__device__ inline double reciprocal(double n) {
    double r = __fdividef(1.0f, static_cast<float>(n));
    r *= 2 - n * r;  // Newton's iteration doubles the number of correct bits
    return r * (2 - n * r);
}

// A double whose operations are rounded one by one, never fused into a multiply-add: what ranks have to agree on bit
// for bit (the statistics, the running statistics) then also agrees with the reference implementation.
struct Rounded {
    double value;
};
__device__ inline Rounded operator+(Rounded a, Rounded b) { return {__dadd_rn(a.value, b.value)}; }
__device__ inline Rounded operator-(Rounded a, Rounded b) { return {__dadd_rn(a.value, -b.value)}; }
__device__ inline Rounded operator*(Rounded a, Rounded b) { return {__dmul_rn(a.value, b.value)}; }
__device__ inline Rounded operator/(Rounded a, Rounded b) { return {__ddiv_rn(a.value, b.value)}; }

// max(0, v), letting NaN through as torch.clamp does and fmax does not.
__device__ inline double not_negative(double v) { return v < 0 ? 0 : v; }

// A mean as hi + lo: hi rounded to A, lo what the rounding left. x - hi is exact where x is near the mean.
template <typename A>
struct Split {
    A hi;
    double lo;
    __device__ explicit Split(double mean) : hi(static_cast<A>(mean)), lo(mean - static_cast<double>(hi)) {}
};

// ---- one instance of a kernel per element type, layout and access width ----

template <typename T_, Layout layout_, int V_>
struct Case {
    using T = T_;
    static constexpr Layout layout = layout_;
    static constexpr int V = V_;
};

template <typename T, typename F>
void dispatch_layout(const Plan& plan, const F& f) {
    constexpr int widest = kAccessBytes / sizeof(T);
    switch (plan.layout) {
        case Layout::ChannelsFirst: return f(Case<T, Layout::ChannelsFirst, widest>{});
        case Layout::ChannelsFirstUnaligned: return f(Case<T, Layout::ChannelsFirstUnaligned, widest>{});
        case Layout::ChannelsLast:
            return plan.vector == 1 ? f(Case<T, Layout::ChannelsLast, 1>{})
                                    : f(Case<T, Layout::ChannelsLast, widest>{});
    }
}

// Calls f with the Case for these elements and this plan.
template <typename F>
void dispatch(Dtype dtype, const Plan& plan, const F& f) {
    switch (dtype) {
        case Dtype::Half: return dispatch_layout<c10::Half>(plan, f);
        case Dtype::BFloat16: return dispatch_layout<c10::BFloat16>(plan, f);
        case Dtype::Float: return dispatch_layout<float>(plan, f);
        case Dtype::Double: return dispatch_layout<double>(plan, f);
    }
}

}  // namespace sbnref
