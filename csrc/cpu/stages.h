// The four stages for CPU tensors, and their shared parts: threads, values per channel, the element types.
#pragma once

#include <algorithm>
#include <functional>
#include <vector>

#include "../shape.h"
#include "../stages.h"
#include "lanes.h"

namespace sbnref::cpu {

void forward_stats(const Shape&, const ForwardStats&);
void forward_apply(const Shape&, const ForwardApply&);
void backward_stats(const Shape&, const BackwardStats&);
void backward_apply(const Shape&, const BackwardApply&);

// Calls f(begin, end) for parts of [0, count) of `grain` or more, each on one of PyTorch's threads.
void in_parallel(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& f);

// Bytes of the largest cache, or a guess if the system does not know.
int64_t last_level_cache();

constexpr int64_t kLeastWork = 32768;    // elements that justify another thread
constexpr int64_t kLeastChannels = 512;  // channels whose coefficients justify one

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// The elements of a tensor, in the order of memory.
template <typename T>
struct Array {
    T* data;
    int64_t size;

    T* end() const { return data + size; }
};

template <typename T>
Array<T> elements(const Buffer& buffer) {
    return {as<T>(buffer), buffer.size};
}

// The channel's value as float64, from its own dtype.
inline double load_channel(const Buffer& buffer, int64_t channel) {
    const int64_t i = channel * buffer.stride;
    switch (buffer.dtype) {
        case Dtype::Half: return static_cast<float>(as<c10::Half>(buffer)[i]);
        case Dtype::BFloat16: return static_cast<float>(as<c10::BFloat16>(buffer)[i]);
        case Dtype::Float: return as<float>(buffer)[i];
        default: return as<double>(buffer)[i];
    }
}

// Calls f with a null pointer of the elements' type.
template <typename F>
void dispatch(Dtype dtype, const F& f) {
    switch (dtype) {
        case Dtype::Half: return f(static_cast<c10::Half*>(nullptr));
        case Dtype::BFloat16: return f(static_cast<c10::BFloat16*>(nullptr));
        case Dtype::Float: return f(static_cast<float*>(nullptr));
        case Dtype::Double: return f(static_cast<double*>(nullptr));
    }
}

}  // namespace sbnref::cpu
