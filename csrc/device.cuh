// What the kernels are written in: global memory behind checked arrays, vectors, arithmetic, the launch. The same
// source is compiled by nvcc for the GPU and, with SBNREF_CUDASIM, by the host's compiler for the simulation.
#pragma once

#include <c10/util/BFloat16.h>
#include <c10/util/Half.h>

#include <cstdint>
#include <cstring>
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

#ifndef SBNREF_CUDASIM
// So many bytes as one access moves them.
template <size_t bytes>
using Bits = std::conditional_t<
    bytes == 16, uint4,
    std::conditional_t<bytes == 8, uint2, std::conditional_t<bytes == 4, unsigned, unsigned short>>>;

// Said in assembly: of an assignment nvcc may make a store for every element.
__device__ __forceinline__ void store_word(uint4* to, uint4 v) {
    asm volatile("st.global.v4.b32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
                 : "memory");
}
__device__ __forceinline__ void store_word(uint2* to, uint2 v) {
    asm volatile("st.global.v2.b32 [%0], {%1, %2};" ::"l"(to), "r"(v.x), "r"(v.y) : "memory");
}
__device__ __forceinline__ void store_word(unsigned* to, unsigned v) {
    asm volatile("st.global.b32 [%0], %1;" ::"l"(to), "r"(v) : "memory");
}
__device__ __forceinline__ void store_word(unsigned short* to, unsigned short v) {
    asm volatile("st.global.b16 [%0], %1;" ::"l"(to), "h"(v) : "memory");
}
#endif

// Whether what is read will be read again. What will not leaves the cache first, before what is still to be read.
enum class Use { Again, Last };

template <int V, Use use = Use::Again, typename T>
__device__ __forceinline__ Vector<T, V> load_vector(Array<const T> array, int64_t i) {
    const Vector<T, V>* const from = reinterpret_cast<const Vector<T, V>*>(array.data + i);
#ifdef SBNREF_CUDASIM
    cudasim::check_access(array.data, array.size, i, V, sizeof(T), cudasim::Access::Read);
#else
    if constexpr (use == Use::Last) {
        using Word = Bits<sizeof(Vector<T, V>)>;
        Vector<T, V> value;
        *reinterpret_cast<Word*>(&value) = __ldcs(reinterpret_cast<const Word*>(from));
        return value;
    }
#endif
    return *from;
}

// Has what lies around array[i] brought to the cache.
template <typename T>
__device__ __forceinline__ void prefetch(Array<const T> array, int64_t i) {
#ifndef SBNREF_CUDASIM
    asm volatile("prefetch.global.L2 [%0];" ::"l"(array.data + i));
#endif
}

template <int V, typename T>
__device__ __forceinline__ void store_vector(Array<T> array, int64_t i, const Vector<T, V>& value) {
#ifdef SBNREF_CUDASIM
    cudasim::check_access(array.data, array.size, i, V, sizeof(T), cudasim::Access::Write);
    *reinterpret_cast<Vector<T, V>*>(array.data + i) = value;
#else
    using Word = Bits<sizeof(Vector<T, V>)>;
    store_word(reinterpret_cast<Word*>(array.data + i), *reinterpret_cast<const Word*>(&value));
#endif
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
    cudasim::check_access(array.data, array.size, i, 1, sizeof(unsigned), cudasim::Access::Ticket);
#endif
    return atomicInc(array.data + i, last);
}

// What is per channel, of whatever dtype, as float64: read where it is made, converted only where it is used, so that
// several reads are under way together.
class ChannelValue {
   public:
    // Nothing is read where the buffer is null.
    __device__ ChannelValue(const Buffer& buffer, int64_t channel) {
        if (buffer.data == nullptr) return;
        const int64_t i = channel * buffer.stride;
        switch (buffer.dtype) {
            case Dtype::Half:
            case Dtype::BFloat16: bits_ = load(as<const uint16_t>(buffer), i); break;
            case Dtype::Float: bits_ = load(as<const uint32_t>(buffer), i); break;
            default: bits_ = load(as<const uint64_t>(buffer), i);
        }
    }

    __device__ double get(Dtype dtype) const {
        switch (dtype) {
            case Dtype::Half: return static_cast<float>(from<c10::Half, uint16_t>());
            case Dtype::BFloat16: return static_cast<float>(from<c10::BFloat16, uint16_t>());
            case Dtype::Float: return from<float, uint32_t>();
            default: return from<double, uint64_t>();
        }
    }

   private:
    template <typename T, typename U>
    __device__ T from() const {
        const U bits = static_cast<U>(bits_);
        T value;
        memcpy(&value, &bits, sizeof value);
        return value;
    }

    uint64_t bits_ = 0;
};

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

template <typename T, Layout layout, int V, typename F>
void dispatch_vector(const Plan& plan, const F& f) {
    if (plan.vector == V) return f(Case<T, layout, V>{});
    if constexpr (V > 1) return dispatch_vector<T, layout, V / 2>(plan, f);
}

template <typename T, typename F>
void dispatch_layout(const Plan& plan, const F& f) {
    constexpr int widest = kAccessBytes / sizeof(T);
    switch (plan.layout) {
        case Layout::ChannelsFirst: return f(Case<T, Layout::ChannelsFirst, widest>{});
        case Layout::ShortRuns: return f(Case<T, Layout::ShortRuns, widest>{});
        case Layout::ChannelsLast: return dispatch_vector<T, Layout::ChannelsLast, widest>(plan, f);
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
