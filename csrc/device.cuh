// Building blocks of the kernels: vectors, values per channel, arithmetic, one instance per dtype and layout. nvcc
// compiles this source for the GPU. With SBNREF_CUDASIM the host's compiler compiles it for the simulation, which has
// no assembly.
#pragma once

#include <cuda_runtime.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <type_traits>

#include "elements.h"

namespace sbnref {

// ---- launches ----

// Throws if the launch failed. The simulation reports operations of a kernel that CUDA does not allow.
inline void check_launch(const char* kernel) {
    const cudaError_t error = cudaGetLastError();
    if (error == cudaSuccess) return;
    char message[1024];  // no std::string: in a wheel, nvcc's compiler and the linker use different C++ libraries
    std::snprintf(message, sizeof message, "launching the kernel %s: %s", kernel, cudaGetErrorString(error));
    throw std::runtime_error(message);
}

// Registers the arrays of a launch. The simulation reports an access to any other.
class Registered {
   public:
#ifdef SBNREF_CUDASIM
    template <typename... Parts>
    explicit Registered(const Parts&... parts) {
        cudasim::forget_failure();
        const auto register_buffer = [](const char* name, const Buffer& b) {
            constexpr size_t kBytes[] = {2, 2, 4, 8};
            const size_t element = kBytes[static_cast<int>(b.dtype)];
            if (b.data != nullptr) cudasim::register_memory(name, b.data, b.size * element, element);
        };
        (each_array(parts, register_buffer), ...);
    }
    ~Registered() { cudasim::unregister_memory(); }
#else
    template <typename... Parts>
    explicit Registered(const Parts&...) {}
#endif
};

// threadIdx.x and blockIdx.x, read again every time: nvcc then computes derived values where they are needed, instead
// of keeping them in registers over the loops. Otherwise forward_stats spills 8 bytes in half precision, channels-last
// (nvcc 13.0, sm_90).
#ifdef SBNREF_CUDASIM
__device__ __forceinline__ unsigned thread_index() { return threadIdx.x; }
__device__ __forceinline__ unsigned block_index() { return blockIdx.x; }
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

// ---- global memory ----

template <typename T, int V>
struct alignas(sizeof(T) * V) Vector {
    T at[V];
};

#ifndef SBNREF_CUDASIM
// A number of bytes that one access moves.
template <size_t bytes>
using Bits = std::conditional_t<
    bytes == 16, uint4,
    std::conditional_t<bytes == 8, uint2, std::conditional_t<bytes == 4, unsigned, unsigned short>>>;

// Inline assembly: nvcc may split a plain assignment into one store per element, as nvcc 13.0 does in forward_apply and
// backward_apply, channels-first.
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

// Whether data will be read again. Data read for the last time leaves the cache before data that is still needed.
enum class Use { Again, Last };

template <int V, Use use = Use::Again, typename T>
__device__ __forceinline__ Vector<T, V> load_vector(const T* from) {
#ifndef SBNREF_CUDASIM
    if constexpr (use == Use::Last) {
        using Word = Bits<sizeof(Vector<T, V>)>;
        Vector<T, V> value;
        *reinterpret_cast<Word*>(&value) = __ldcs(reinterpret_cast<const Word*>(from));
        return value;
    }
#endif
    return *reinterpret_cast<const Vector<T, V>*>(from);
}

// Prefetches the cache line of an address.
__device__ __forceinline__ void prefetch(const void* address) {
#ifndef SBNREF_CUDASIM
    asm volatile("prefetch.global.L2 [%0];" ::"l"(address));
#endif
}

template <int V, typename T>
__device__ __forceinline__ void store_vector(T* to, const Vector<T, V>& value) {
#ifdef SBNREF_CUDASIM
    *reinterpret_cast<Vector<T, V>*>(to) = value;
#else
    using Word = Bits<sizeof(Vector<T, V>)>;
    store_word(reinterpret_cast<Word*>(to), *reinterpret_cast<const Word*>(&value));
#endif
}

// A value per channel, of any dtype, as float64. It is read when constructed and converted only when used, so that
// several reads are in flight together.
class ChannelValue {
   public:
    // Reads nothing if the buffer is null.
    __device__ ChannelValue(const Buffer& buffer, int64_t channel) {
        if (buffer.data == nullptr) return;
        const int64_t i = channel * buffer.stride;
        switch (buffer.dtype) {
            case Dtype::Half:
            case Dtype::BFloat16: bits_ = as<const uint16_t>(buffer)[i]; break;
            case Dtype::Float: bits_ = as<const uint32_t>(buffer)[i]; break;
            default: bits_ = as<const uint64_t>(buffer)[i];
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

// ---- arithmetic ----

// Element i of a vector, in the accumulator's type. Two bfloat16 are unpacked from the 32-bit register that holds them:
// converted one by one, each needs its own register, and 7 of 12 kernels spill (nvcc 13.0, sm_90).
template <typename T, int V>
__device__ __forceinline__ Accumulator<T> element(const Vector<T, V>& vector, int i) {
#ifndef SBNREF_CUDASIM
    if constexpr (std::is_same_v<T, c10::BFloat16> && V > 1) {
        const unsigned word = reinterpret_cast<const unsigned*>(&vector)[i / 2];
        return __uint_as_float(i % 2 ? word & 0xffff0000u : word << 16);
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

// A double whose operations are rounded one by one, never fused into a multiply-add. Statistics and running statistics
// have to agree between ranks bit for bit; without fusing they also agree with the reference implementation.
struct Rounded {
    double value;
};
__device__ inline Rounded operator+(Rounded a, Rounded b) { return {__dadd_rn(a.value, b.value)}; }
__device__ inline Rounded operator-(Rounded a, Rounded b) { return {__dadd_rn(a.value, -b.value)}; }
__device__ inline Rounded operator*(Rounded a, Rounded b) { return {__dmul_rn(a.value, b.value)}; }
__device__ inline Rounded operator/(Rounded a, Rounded b) { return {__ddiv_rn(a.value, b.value)}; }

// max(0, v) that passes NaN on, like torch.clamp and unlike fmax.
__device__ inline double not_negative(double v) { return v < 0 ? 0 : v; }

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

// Calls f, which launches a kernel, with the Case for the elements and the plan. Throws if the launch failed.
template <typename F>
void launch(const char* kernel, Dtype dtype, const Plan& plan, const F& f) {
    switch (dtype) {
        case Dtype::Half: dispatch_layout<c10::Half>(plan, f); break;
        case Dtype::BFloat16: dispatch_layout<c10::BFloat16>(plan, f); break;
        case Dtype::Float: dispatch_layout<float>(plan, f); break;
        case Dtype::Double: dispatch_layout<double>(plan, f); break;
    }
    check_launch(kernel);
}

}  // namespace sbnref
