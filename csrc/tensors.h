// From PyTorch's tensors to the stages' arguments: which tensors are refused, and which are copied. Everything here
// uses PyTorch's stable ABI, so that a library serves all versions from 2.11 on.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <numeric>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <vector>

#include "shape.h"
#include "stages.h"

namespace sbnref {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// The layer checks its input in Python. These checks are for direct calls of the operators: they keep every access
// inside the tensors.
template <typename... Parts>
void expect(bool condition, const Parts&... parts) {
    if (condition) return;
    std::ostringstream message;
    (message << "expected " << ... << parts);
    throw std::runtime_error(message.str());
}

inline std::string sizes_of(const Tensor& tensor) {
    std::ostringstream text;
    text << '[';
    for (int64_t d = 0; d < tensor.dim(); ++d) text << (d ? ", " : "") << tensor.size(d);
    text << ']';
    return text.str();
}

inline Dtype dtype_of(const Tensor& tensor) {
    switch (tensor.scalar_type()) {
        case ScalarType::Half: return Dtype::Half;
        case ScalarType::BFloat16: return Dtype::BFloat16;
        case ScalarType::Float: return Dtype::Float;
        case ScalarType::Double: return Dtype::Double;
        default:
            expect(
                false, "a tensor of float16, bfloat16, float32 or float64, got ",
                torch::headeronly::toString(tensor.scalar_type()));
            return {};
    }
}

inline Buffer buffer(const Tensor& dense) { return {dense.data_ptr(), dense.numel(), dtype_of(dense), 1}; }

inline Shape shape_of(const Tensor& dense) {
    const int64_t C = dense.size(1);
    if (dense.numel() == 0) return {0, C, 1};
    // Dimensions with larger strides than the channels' are outside of them in memory, those with smaller ones inside.
    const int64_t inner = C == 1 ? dense.numel() : dense.stride(1);
    return {dense.numel() / (C * inner), C, inner};
}

inline bool starts_on(const Tensor& tensor, int64_t bytes) {
    return reinterpret_cast<uintptr_t>(tensor.data_ptr()) % bytes == 0;
}

// The tensor itself if it starts on a multiple of its element size. If not (part of a file, for example), a CPU copies
// it; a GPU cannot even do that.
inline Tensor aligned(const char* name, const Tensor& tensor) {
    const int64_t bytes = tensor.element_size();
    if (starts_on(tensor, bytes)) return tensor;
    expect(
        tensor.is_cpu(), name, " to start on a multiple of ", bytes, " bytes, the size of an element, got address ",
        tensor.data_ptr());
    return torch::stable::clone(tensor);
}

// Whether the elements lie side by side in memory, in any order.
inline bool is_dense(const Tensor& tensor) {
    if (tensor.is_contiguous()) return true;
    std::vector<int64_t> dims(tensor.dim());
    std::iota(dims.begin(), dims.end(), 0);
    std::sort(dims.begin(), dims.end(), [&](int64_t a, int64_t b) { return tensor.stride(a) < tensor.stride(b); });
    int64_t step = 1;
    for (const int64_t d : dims) {
        if (tensor.size(d) == 1) continue;
        if (tensor.stride(d) != step) return false;
        step *= tensor.size(d);
    }
    return true;
}

// x itself if its elements lie side by side, otherwise a copy with the same order of dimensions.
inline Tensor dense(const Tensor& x) {
    expect(x.dim() >= 2 && x.size(1) > 0, "x of shape (N, C, *) with C > 0, got ", sizes_of(x));
    return aligned("x", is_dense(x) ? x : torch::stable::clone(x));
}

// `other` with its elements in the order of x's.
inline Tensor laid_out_like(const Tensor& other, const Tensor& x) {
    bool same_sizes = other.dim() == x.dim(), same = true;
    for (int64_t d = 0; same_sizes && d < x.dim(); ++d) {
        same_sizes = other.size(d) == x.size(d);
        same &= x.size(d) == 1 || other.stride(d) == x.stride(d);
    }
    expect(
        same_sizes && other.scalar_type() == x.scalar_type() && other.device() == x.device(), "dy like x, ",
        sizes_of(x), " of ", torch::headeronly::toString(x.scalar_type()), ", got ", sizes_of(other), " of ",
        torch::headeronly::toString(other.scalar_type()));
    if (same || x.numel() == 0) return aligned("dy", other);
    Tensor copy = torch::stable::empty_like(x);
    return torch::stable::copy_(copy, other);
}

// Room for `size` float64 numbers on x's device.
inline Tensor empty_statistics(std::initializer_list<int64_t> size, const Tensor& x) {
    return torch::stable::new_empty(x, {size.begin(), size.size()}, ScalarType::Double);
}

// A contiguous vector of float64 on x's device.
inline Buffer statistics(const char* name, const Tensor& tensor, int64_t size, const Tensor& x) {
    expect(
        tensor.numel() == size && tensor.scalar_type() == ScalarType::Double && tensor.is_contiguous() &&
            tensor.device() == x.device(),
        name, " with ", size, " contiguous float64 numbers on x's device, got ", sizes_of(tensor), " of ",
        torch::headeronly::toString(tensor.scalar_type()));
    return buffer(tensor);
}

// A vector (C,) of any floating dtype on x's device, or none. It may be written to, so it is not copied.
inline Buffer per_channel(const char* name, const OptionalTensor& tensor, const Tensor& x) {
    if (!tensor) return {};
    expect(
        tensor->dim() == 1 && tensor->numel() == x.size(1) && tensor->device() == x.device(), name, " of shape [",
        x.size(1), "] on x's device, got ", sizes_of(*tensor));
    const int64_t bytes = tensor->element_size(), stride = tensor->stride(0);
    expect(
        starts_on(*tensor, bytes), name, " to start on a multiple of ", bytes,
        " bytes, the size of an element, got address ", tensor->data_ptr());
    return {tensor->data_ptr(), (x.size(1) - 1) * stride + 1, dtype_of(*tensor), stride};
}

}  // namespace sbnref
