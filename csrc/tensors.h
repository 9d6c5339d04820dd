// From PyTorch's tensors to the stages' arguments: validate tensors, and copy them if needed. Everything here uses
// PyTorch's stable C interface, so that a library works with all versions from 2.11 on.
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

using OptionalTensor = std::optional<torch::stable::Tensor>;

// The layer checks its input in Python. These checks are for direct calls of the operators: they keep every access
// inside the tensors.
template <typename... Parts>
void expect(bool condition, const Parts&... parts) {
    if (condition) return;
    std::ostringstream message;
    message << "expected ";
    (message << ... << parts);
    throw std::runtime_error(message.str());
}

// A tensor with its properties, read once, because every read is a call into PyTorch that slows down small batches.
struct C10_HIDDEN Tensor {
    torch::stable::Tensor handle;  // keeps the memory
    void* data;
    int64_t dim, size;
    int64_t *sizes, *strides;
    int32_t dtype, device_type, device;

    Tensor(const torch::stable::Tensor& tensor) : handle(tensor) {
        const AtenTensorHandle t = handle.get();
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(t, &data));
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(t, &dim));
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_numel(t, &size));
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(t, &sizes));
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(t, &strides));
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(t, &dtype));
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t, &device_type));
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(t, &device));
    }

    int64_t channels() const { return sizes[1]; }
    int64_t element_size() const { return aoti_torch_dtype_element_size(dtype); }
    bool starts_on(int64_t bytes) const { return reinterpret_cast<uintptr_t>(data) % bytes == 0; }
    bool beside(const Tensor& x) const { return device_type == x.device_type && device == x.device; }
};

// For errors: [2, 3] of Float.
inline std::ostream& operator<<(std::ostream& out, const Tensor& tensor) {
    for (int64_t d = 0; d < tensor.dim; ++d) out << (d ? ", " : "[") << tensor.sizes[d];
    return out << (tensor.dim ? "] of " : "[] of ") << torch::headeronly::toString(tensor.handle.scalar_type());
}

inline Dtype dtype_of(const Tensor& tensor) {
    static const int32_t float16 = aoti_torch_dtype_float16(), bfloat16 = aoti_torch_dtype_bfloat16(),
                         float32 = aoti_torch_dtype_float32(), float64 = aoti_torch_dtype_float64();
    if (tensor.dtype == float32) return Dtype::Float;
    if (tensor.dtype == float64) return Dtype::Double;
    if (tensor.dtype == float16) return Dtype::Half;
    expect(tensor.dtype == bfloat16, "a tensor of float16, bfloat16, float32 or float64, got ", tensor);
    return Dtype::BFloat16;
}

inline Buffer buffer(const Tensor& dense) { return {dense.data, dense.size, dtype_of(dense), 1}; }

inline Shape shape_of(const Tensor& dense) {
    const int64_t C = dense.channels();
    if (dense.size == 0) return {0, C, 1};
    // In memory, dimensions with larger strides than the channels' are outside, those with smaller strides inside.
    const int64_t inner = C == 1 ? dense.size : dense.strides[1];
    return {dense.size / (C * inner), C, inner};
}

// ---- new tensors, on x's device ----

// PyTorch's C function is much faster than torch::stable::new_empty, which looks its operator up by name.
inline Tensor allocate(int64_t dim, const int64_t* sizes, const int64_t* strides, int32_t dtype, const Tensor& x) {
    AtenTensorHandle made = nullptr;
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(dim, sizes, strides, dtype, x.device_type, x.device, &made));
    return torch::stable::Tensor(made);
}

inline Tensor allocate_like(const Tensor& x) { return allocate(x.dim, x.sizes, x.strides, x.dtype, x); }

inline Tensor allocate_vector(int64_t size, int32_t dtype, const Tensor& x) {
    const int64_t stride = 1;
    return allocate(1, &size, &stride, dtype, x);
}

// Room for float64 numbers: (columns,), or (rows, columns).
inline Tensor allocate_statistics(int64_t columns, const Tensor& x) {
    return allocate_vector(columns, aoti_torch_dtype_float64(), x);
}
inline Tensor allocate_statistics(int64_t rows, int64_t columns, const Tensor& x) {
    const int64_t sizes[] = {rows, columns}, strides[] = {columns, 1};
    return allocate(2, sizes, strides, aoti_torch_dtype_float64(), x);
}

// ---- large inputs: dense and alike, or copied ----

// The tensor itself if it starts on a multiple of its element size. If not (part of a file, for example), a CPU copies
// it, but a GPU cannot.
inline Tensor aligned(const char* name, const Tensor& tensor) {
    const int64_t bytes = tensor.element_size();
    if (tensor.starts_on(bytes)) return tensor;
    expect(
        tensor.device_type == aoti_torch_device_type_cpu(), name, " to start on a multiple of ", bytes,
        " bytes, the size of an element, got address ", tensor.data);
    return torch::stable::clone(tensor.handle);
}

// Whether the elements lie side by side in memory, in any order of dimensions.
inline bool is_dense(const Tensor& tensor) {
    if (tensor.size == 0 || tensor.handle.is_contiguous()) return true;
    std::vector<int64_t> dims(tensor.dim);
    std::iota(dims.begin(), dims.end(), 0);
    std::sort(dims.begin(), dims.end(), [&](int64_t a, int64_t b) { return tensor.strides[a] < tensor.strides[b]; });
    int64_t step = 1;
    for (const int64_t d : dims) {
        if (tensor.sizes[d] == 1) continue;
        if (tensor.strides[d] != step) return false;
        step *= tensor.sizes[d];
    }
    return true;
}

// x itself if its elements lie side by side, otherwise a copy with the same order of dimensions.
inline Tensor dense(const Tensor& x) {
    expect(x.dim >= 2 && x.sizes[1] > 0, "x of shape (N, C, *) with C > 0, got ", x);
    return aligned("x", is_dense(x) ? x : Tensor(torch::stable::clone(x.handle)));
}

// dy with its elements in the order of x's.
inline Tensor laid_out_like(const Tensor& dy, const Tensor& x) {
    bool same_sizes = dy.dim == x.dim, same = true;
    for (int64_t d = 0; same_sizes && d < x.dim; ++d) {
        same_sizes = dy.sizes[d] == x.sizes[d];
        same &= x.sizes[d] == 1 || dy.strides[d] == x.strides[d];
    }
    expect(same_sizes && dy.dtype == x.dtype && dy.beside(x), "dy like x, ", x, " on the same device, got ", dy);
    if (same || x.size == 0) return aligned("dy", dy);
    Tensor copy = allocate_like(x);
    torch::stable::copy_(copy.handle, dy.handle);
    return copy;
}

// ---- small inputs: used as they are, or an error ----

// A contiguous vector of float64.
inline Buffer statistics(const char* name, const Tensor& tensor, int64_t size, const Tensor& x) {
    expect(
        tensor.size == size && tensor.dtype == aoti_torch_dtype_float64() && tensor.handle.is_contiguous() &&
            tensor.beside(x),
        name, " with ", size, " contiguous float64 numbers on x's device, got ", tensor);
    return buffer(tensor);
}

// A vector (C,) of any floating dtype, or none. It may be an output, so it is never copied.
inline Buffer per_channel(const char* name, const Tensor& tensor, const Tensor& x) {
    const int64_t C = x.channels();
    expect(
        tensor.dim == 1 && tensor.size == C && tensor.beside(x), name, " of shape [", C, "] on x's device, got ",
        tensor);
    expect(
        tensor.starts_on(tensor.element_size()), name, " to start on a multiple of ", tensor.element_size(),
        " bytes, the size of an element, got address ", tensor.data);
    return {tensor.data, (C - 1) * tensor.strides[0] + 1, dtype_of(tensor), tensor.strides[0]};
}
inline Buffer per_channel(const char* name, const OptionalTensor& tensor, const Tensor& x) {
    return tensor ? per_channel(name, Tensor(*tensor), x) : Buffer{};
}

}  // namespace sbnref
