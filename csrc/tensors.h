// From PyTorch's tensors to the stages' arguments: what is refused, what is made dense. The operators for CUDA and
// those for CPUs both stand on this, so they take and refuse the same.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include <iterator>
#include <optional>

#include "shape.h"
#include "stages.h"

namespace sbnref {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

inline Dtype dtype_of(const Tensor& tensor) {
    switch (tensor.scalar_type()) {
        case at::kHalf: return Dtype::Half;
        case at::kBFloat16: return Dtype::BFloat16;
        case at::kFloat: return Dtype::Float;
        case at::kDouble: return Dtype::Double;
        default:
            TORCH_CHECK_TYPE(
                false, "expected a tensor of float16, bfloat16, float32 or float64, got ", tensor.scalar_type());
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

// The tensor itself where it starts on a multiple of its element size. One that does not, as of numbers in the middle
// of a file, is copied on a CPU; a GPU could not even do that.
inline Tensor aligned(const char* name, const Tensor& tensor) {
    if (reinterpret_cast<uintptr_t>(tensor.data_ptr()) % tensor.element_size() == 0) return tensor;
    TORCH_CHECK_VALUE(
        tensor.is_cpu(), "expected ", name, " to start on a multiple of ", tensor.element_size(),
        " bytes, the size of an element, got address ", tensor.data_ptr());
    return tensor.clone();
}

// x itself where its elements lie side by side in whatever order, otherwise a copy in the nearest memory format.
inline Tensor dense(const Tensor& x) {
    TORCH_CHECK_VALUE(x.dim() >= 2 && x.size(1) > 0, "expected x of shape (N, C, *) with C > 0, got ", x.sizes());
    return aligned("x", x.is_non_overlapping_and_dense() ? x : x.contiguous(x.suggest_memory_format()));
}

// `other` with its elements in the order of x's.
inline Tensor laid_out_like(const Tensor& other, const Tensor& x) {
    TORCH_CHECK_VALUE(
        other.sizes() == x.sizes() && other.dtype() == x.dtype() && other.device() == x.device(),
        "expected dy like x, ", x.sizes(), " of ", x.dtype(), " on ", x.device(), ", got ", other.sizes(), " of ",
        other.dtype(), " on ", other.device());
    bool same = true;
    for (int64_t d = 0; d < x.dim(); ++d) same &= x.size(d) == 1 || other.stride(d) == x.stride(d);
    return same || x.numel() == 0 ? aligned("dy", other) : at::empty_like(x).copy_(other);
}

// Room for `size` float64 numbers on x's device.
inline Tensor empty_statistics(at::IntArrayRef size, const Tensor& x) {
    return at::empty(size, x.options().dtype(at::kDouble));
}

// A contiguous vector of float64 on x's device.
inline Buffer statistics(const char* name, const Tensor& tensor, int64_t size, const Tensor& x) {
    TORCH_CHECK_VALUE(
        tensor.numel() == size && tensor.scalar_type() == at::kDouble && tensor.is_contiguous() &&
            tensor.device() == x.device(),
        "expected ", name, " with ", size, " contiguous float64 numbers on ", x.device(), ", got ", tensor.sizes(),
        " of ", tensor.dtype(), " on ", tensor.device());
    return buffer(tensor);
}

// A vector (C,) of any floating dtype on x's device, or none. It may be written to, so it is not copied.
inline Buffer per_channel(const char* name, const OptionalTensor& tensor, const Tensor& x) {
    if (!tensor) return {};
    TORCH_CHECK_VALUE(
        tensor->dim() == 1 && tensor->numel() == x.size(1) && tensor->device() == x.device(), "expected ", name,
        " of shape [", x.size(1), "] on ", x.device(), ", got ", tensor->sizes(), " on ", tensor->device());
    const auto address = reinterpret_cast<uintptr_t>(tensor->data_ptr());
    TORCH_CHECK_VALUE(
        address % tensor->element_size() == 0, "expected ", name, " to start on a multiple of ", tensor->element_size(),
        " bytes, the size of an element, got address ", tensor->data_ptr());
    const int64_t stride = tensor->stride(0);
    return {tensor->data_ptr(), (x.size(1) - 1) * stride + 1, dtype_of(*tensor), stride};
}

// The arguments of stage 2, but for the tickets. x is dense, y and saved are what it fills.
inline ForwardApply forward_apply_stage(
    const Tensor& x, const Tensor& total, std::optional<int64_t> divisor, const OptionalTensor& gamma,
    const OptionalTensor& beta, double eps, const OptionalTensor& running_mean, const OptionalTensor& running_var,
    const OptionalTensor& num_batches_tracked, std::optional<double> momentum, const Tensor& y, const Tensor& saved) {
    TORCH_CHECK_VALUE(
        momentum || !running_mean || num_batches_tracked, "expected num_batches_tracked for momentum=None, got None");
    TORCH_CHECK_VALUE(
        !num_batches_tracked || (num_batches_tracked->numel() == 1 && num_batches_tracked->scalar_type() == at::kLong &&
                                 num_batches_tracked->device() == x.device()),
        "expected num_batches_tracked as one int64 number on ", x.device());
    return {
        buffer(x),
        statistics("total", total, 3 * x.size(1) + 2, x),
        divisor.value_or(0),
        per_channel("gamma", gamma, x),
        per_channel("beta", beta, x),
        eps,
        per_channel("running_mean", running_mean, x),
        per_channel("running_var", running_var, x),
        running_mean && num_batches_tracked ? num_batches_tracked->data_ptr<int64_t>() : nullptr,
        nullptr,
        !momentum,
        momentum.value_or(0),
        buffer(y),
        buffer(saved)};
}

// The arguments of stage 4. dy and x are laid out alike; dx, dgamma and dbeta are what it fills.
inline BackwardApply backward_apply_stage(
    const Tensor& dy, const Tensor& x, const Tensor& total, const Tensor& saved, const OptionalTensor& gamma, double k,
    const Tensor& dx, const OptionalTensor& dgamma = {}, const OptionalTensor& dbeta = {}, int64_t ranks = 1) {
    const int64_t C = x.size(1);
    return {
        buffer(dy),
        buffer(x),
        statistics("total", total, 2 * C, x),
        statistics("saved", saved, 4 * C, x),
        per_channel("gamma", gamma, x),
        k,
        buffer(dx),
        per_channel("dgamma", dgamma, x),
        per_channel("dbeta", dbeta, x),
        static_cast<double>(ranks)};
}

// Room for the gradient of what is per channel.
inline Tensor empty_gradient(const Tensor& parameter) { return at::empty(parameter.sizes(), parameter.options()); }

// The operators' schemas.
inline void define_stages(torch::Library& m) {
    m.def("forward_stats(Tensor x, SymInt weight) -> Tensor");
    m.def(
        "forward_apply(Tensor x, Tensor total, int? divisor, Tensor? gamma, Tensor? beta, float eps, "
        "Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor(c!)? num_batches_tracked, float? momentum) "
        "-> (Tensor, Tensor)");
    m.def("backward_stats(Tensor dy, Tensor x, Tensor saved) -> Tensor");
    // k is a Scalar because torch.compile fixes a float, and k changes with the batch size
    m.def("backward_apply(Tensor dy, Tensor x, Tensor total, Tensor saved, Tensor? gamma, Scalar k) -> Tensor");
    m.def(
        "gradients(Tensor dy, Tensor x, Tensor total, Tensor saved, Tensor gamma, Tensor beta, Scalar k, int ranks) "
        "-> (Tensor, Tensor, Tensor)");
}

// Their implementations on a device, in the same order.
template <typename... Functions>
void implement_stages(torch::Library& m, Functions... functions) {
    const char* names[] = {"forward_stats", "forward_apply", "backward_stats", "backward_apply", "gradients"};
    static_assert(sizeof...(functions) == std::size(names));
    const char** name = names;
    (m.impl(*name++, functions), ...);
}

}  // namespace sbnref
