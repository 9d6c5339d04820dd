// Shared by the kernels for GPUs and CPUs: the types of elements, values per channel, and a mean in two parts.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "stages.h"

namespace sbnref {

template <typename T>
C10_HOST_DEVICE T* as(const Buffer& buffer) {
    return static_cast<T*>(buffer.data);
}

// The type of arithmetic on elements: float, or double for double.
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

// Stores a float64 value in the channel's own dtype.
C10_HOST_DEVICE inline void store_channel(const Buffer& buffer, int64_t channel, double value) {
    const int64_t i = channel * buffer.stride;
    switch (buffer.dtype) {
        case Dtype::Half: as<c10::Half>(buffer)[i] = static_cast<float>(value); break;
        case Dtype::BFloat16: as<c10::BFloat16>(buffer)[i] = static_cast<float>(value); break;
        case Dtype::Float: as<float>(buffer)[i] = static_cast<float>(value); break;
        default: as<double>(buffer)[i] = value;
    }
}

// A mean as hi + lo: hi is rounded to A, lo is the remainder. x - hi is exact where x is near the mean.
template <typename A>
struct Split {
    A hi;
    double lo;
    C10_HOST_DEVICE explicit Split(double mean) : hi(static_cast<A>(mean)), lo(mean - static_cast<double>(hi)) {}
};

}  // namespace sbnref
