// The four stages as PyTorch operators: from tensors to raw memory, and the workspace.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>
#include <torch/library.h>

#include <map>
#include <mutex>
#include <optional>
#include <tuple>
#include <utility>

#include "plan.h"
#include "runtime.h"
#include "stages.h"

namespace sbnref {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

// ---- tensors as the stages take them ----

Dtype dtype_of(const Tensor& tensor) {
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

Buffer buffer(const Tensor& dense) { return {dense.data_ptr(), dense.numel(), dtype_of(dense), 1}; }

// x itself where its elements lie side by side in whatever order, otherwise a copy in the nearest memory format.
Tensor dense(const Tensor& x) {
    TORCH_CHECK_VALUE(x.dim() >= 2 && x.size(1) > 0, "expected x of shape (N, C, *) with C > 0, got ", x.sizes());
    return x.is_non_overlapping_and_dense() ? x : x.contiguous(x.suggest_memory_format());
}

// `other` with its elements in the order of x's.
Tensor laid_out_like(const Tensor& other, const Tensor& x) {
    TORCH_CHECK_VALUE(
        other.sizes() == x.sizes() && other.dtype() == x.dtype() && other.device() == x.device(),
        "expected dy like x, ", x.sizes(), " of ", x.dtype(), " on ", x.device(), ", got ", other.sizes(), " of ",
        other.dtype(), " on ", other.device());
    bool same = true;
    for (int64_t d = 0; d < x.dim(); ++d) same &= x.size(d) == 1 || other.stride(d) == x.stride(d);
    return same || x.numel() == 0 ? other : at::empty_like(x).copy_(other);
}

// A contiguous vector of float64 on x's device.
Buffer statistics(const char* name, const Tensor& tensor, int64_t size, const Tensor& x) {
    TORCH_CHECK_VALUE(
        tensor.numel() == size && tensor.scalar_type() == at::kDouble && tensor.is_contiguous() &&
            tensor.device() == x.device(),
        "expected ", name, " with ", size, " contiguous float64 numbers on ", x.device(), ", got ", tensor.sizes(),
        " of ", tensor.dtype(), " on ", tensor.device());
    return buffer(tensor);
}

// A vector (C,) of any floating dtype on x's device, or none.
Buffer per_channel(const char* name, const OptionalTensor& tensor, const Tensor& x) {
    if (!tensor) return {};
    TORCH_CHECK_VALUE(
        tensor->dim() == 1 && tensor->numel() == x.size(1) && tensor->device() == x.device(), "expected ", name,
        " of shape [", x.size(1), "] on ", x.device(), ", got ", tensor->sizes(), " on ", tensor->device());
    const int64_t stride = tensor->stride(0);
    return {tensor->data_ptr(), (x.size(1) - 1) * stride + 1, dtype_of(*tensor), stride};
}

// ---- the plan ----

int misaligned_elements(const Tensor& x) {
    return static_cast<int>(reinterpret_cast<uintptr_t>(x.data_ptr()) % kAccessBytes / x.element_size());
}

Plan plan_for(const Tensor& x, bool aligned, int unroll) {
    // Dimensions with larger strides than the channels' are outside of them in memory, those with smaller ones inside.
    const int64_t C = x.size(1);
    int64_t outer = 0, inner = 1;
    if (x.numel() > 0) {
        inner = C == 1 ? x.numel() : x.stride(1);
        outer = x.numel() / (C * inner);
    }
    return make_plan(
        outer, C, inner, static_cast<int>(x.element_size()), misaligned_elements(x), aligned, unroll, current_device());
}

// ---- the workspace: where the blocks of a launch meet ----

// Counters that every launch leaves at zero as it found them, so that none has to be preceded by a memset: one set per
// stream, since launches on one stream follow each other. They are not PyTorch's memory: what its allocator gives out
// while a CUDA graph is warmed up belongs to that graph, which takes it back. A CUDA graph may run on any stream,
// alongside anything, so what is captured gets a set of its own, which is part of the graph.
struct Tickets {
    unsigned* counters = nullptr;
    Tensor captured;  // holds them while they are used, where they are part of a graph
};

Tickets tickets(const Tensor& x) {
    if (capturing()) {
        const Tensor captured = at::zeros({kTickets}, x.options().dtype(at::kInt));
        return {static_cast<unsigned*>(captured.data_ptr()), captured};
    }
    static std::mutex mutex;
    static std::map<std::pair<int, Stream>, unsigned*> of_stream;  // 16 KiB each, until the process ends
    const std::lock_guard<std::mutex> lock(mutex);
    unsigned*& mine = of_stream[{x.get_device(), current_stream()}];
    if (mine == nullptr) mine = static_cast<unsigned*>(zeroed_memory(kTickets * sizeof(unsigned)));
    return {mine, {}};
}

struct WorkspaceTensors {
    Tensor partials;
    Tickets tickets;
    operator Workspace() const {
        if (!partials.defined()) return {};
        return {partials.data_ptr<double>(), partials.numel(), tickets.counters};
    }
};

WorkspaceTensors workspace_for(const Plan& plan, const Tensor& x) {
    if (plan.splits == 1) return {};
    return {at::empty({plan.blocks() * plan.tile_channels() * 2}, x.options().dtype(at::kDouble)), tickets(x)};
}

// ---- the operators ----

Tensor forward_stats_op(const Tensor& x_in, int64_t weight) {
    const c10::DeviceGuard guard(x_in.device());
    const Tensor x = dense(x_in);
    const Tensor payload = at::empty({2 * x.size(1) + 2}, x.options().dtype(at::kDouble));
    const Plan plan = plan_for(x, misaligned_elements(x) == 0, kForwardUnroll);
    forward_stats(
        plan, {buffer(x), static_cast<double>(weight), buffer(payload)}, workspace_for(plan, x), current_stream());
    return payload;
}

std::tuple<Tensor, Tensor> forward_apply_op(
    const Tensor& x_in, const Tensor& total, std::optional<int64_t> divisor, const OptionalTensor& gamma,
    const OptionalTensor& beta, double eps, const OptionalTensor& running_mean, const OptionalTensor& running_var,
    const OptionalTensor& num_batches_tracked, std::optional<double> momentum) {
    const c10::DeviceGuard guard(x_in.device());
    const Tensor x = dense(x_in), y = at::empty_like(x);
    const int64_t C = x.size(1);
    const Tensor saved = at::empty({4, C}, x.options().dtype(at::kDouble));
    TORCH_CHECK_VALUE(
        momentum || !running_mean || num_batches_tracked, "expected num_batches_tracked for momentum=None, got None");
    TORCH_CHECK_VALUE(
        !num_batches_tracked || (num_batches_tracked->numel() == 1 && num_batches_tracked->scalar_type() == at::kLong &&
                                 num_batches_tracked->device() == x.device()),
        "expected num_batches_tracked as one int64 number on ", x.device());
    const bool counts = running_mean && num_batches_tracked;
    const Tickets ticket = counts ? tickets(x) : Tickets{};
    const ForwardApply stage{
        buffer(x),
        statistics("total", total, 2 * C + 2, x),
        divisor.value_or(0),
        per_channel("gamma", gamma, x),
        per_channel("beta", beta, x),
        eps,
        per_channel("running_mean", running_mean, x),
        per_channel("running_var", running_var, x),
        counts ? num_batches_tracked->data_ptr<int64_t>() : nullptr,
        ticket.counters,
        !momentum,
        momentum.value_or(0),
        buffer(y),
        buffer(saved)};
    forward_apply(plan_for(x, misaligned_elements(x) == 0, kForwardUnroll), stage, current_stream());
    return {y, saved};
}

Tensor backward_stats_op(const Tensor& dy_in, const Tensor& x_in, const Tensor& saved) {
    const c10::DeviceGuard guard(x_in.device());
    const Tensor x = dense(x_in), dy = laid_out_like(dy_in, x);
    const int64_t C = x.size(1);
    const Tensor payload = at::empty({2 * C}, x.options().dtype(at::kDouble));
    const bool aligned = misaligned_elements(x) == 0 && misaligned_elements(dy) == 0;
    const Plan plan = plan_for(x, aligned, kBackwardUnroll);
    backward_stats(
        plan, {buffer(dy), buffer(x), statistics("saved", saved, 4 * C, x), buffer(payload)}, workspace_for(plan, x),
        current_stream());
    return payload;
}

Tensor backward_apply_op(
    const Tensor& dy_in, const Tensor& x_in, const Tensor& total, const Tensor& saved, const OptionalTensor& gamma,
    const at::Scalar& k) {
    const c10::DeviceGuard guard(x_in.device());
    const Tensor x = dense(x_in), dy = laid_out_like(dy_in, x), dx = at::empty_like(x);
    const int64_t C = x.size(1);
    const bool aligned = misaligned_elements(x) == 0 && misaligned_elements(dy) == 0;
    const BackwardApply stage{
        buffer(dy),
        buffer(x),
        statistics("total", total, 2 * C, x),
        statistics("saved", saved, 4 * C, x),
        per_channel("gamma", gamma, x),
        k.toDouble(),
        buffer(dx)};
    backward_apply(plan_for(x, aligned, kBackwardUnroll), stage, current_stream());
    return dx;
}

}  // namespace

TORCH_LIBRARY(sbnref, m) {
    m.def("forward_stats(Tensor x, SymInt weight) -> Tensor");
    m.def(
        "forward_apply(Tensor x, Tensor total, int? divisor, Tensor? gamma, Tensor? beta, float eps, "
        "Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor(c!)? num_batches_tracked, float? momentum) "
        "-> (Tensor, Tensor)");
    m.def("backward_stats(Tensor dy, Tensor x, Tensor saved) -> Tensor");
    // k is a Scalar because torch.compile fixes a float, and k changes with the batch size
    m.def("backward_apply(Tensor dy, Tensor x, Tensor total, Tensor saved, Tensor? gamma, Scalar k) -> Tensor");
}

TORCH_LIBRARY_IMPL(sbnref, SBNREF_DISPATCH_KEY, m) {
    m.impl("forward_stats", forward_stats_op);
    m.impl("forward_apply", forward_apply_op);
    m.impl("backward_stats", backward_stats_op);
    m.impl("backward_apply", backward_apply_op);
}

}  // namespace sbnref
