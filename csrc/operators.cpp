// The four stages as PyTorch operators: the launch plan and the workspace. See tensors.h for what they take.
#include <ATen/ops/zeros.h>
#include <c10/core/DeviceGuard.h>

#include <map>
#include <mutex>
#include <tuple>
#include <utility>

#include "plan.h"
#include "runtime.h"
#include "stages.h"
#include "tensors.h"

namespace sbnref {
namespace {

// ---- the plan ----

// A dense tensor that starts on a boundary of the widest access: itself, as nearly always, or a copy.
Tensor on_boundary(const Tensor& x) {
    return reinterpret_cast<uintptr_t>(x.data_ptr()) % kAccessBytes == 0 ? x : x.clone();
}

Plan plan_for(const Tensor& x, int unroll) {
    const Shape shape = shape_of(x);
    return make_plan(
        shape.outer, shape.channels, shape.inner, static_cast<int>(x.element_size()), unroll, current_device());
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
    return {empty_statistics({plan.blocks() * plan.tile_channels * 2}, x), tickets(x)};
}

// ---- the operators ----

Tensor forward_stats_op(const Tensor& x_in, int64_t weight) {
    const c10::DeviceGuard guard(x_in.device());
    const Tensor x = on_boundary(dense(x_in));
    const Tensor payload = empty_statistics({3 * x.size(1) + 2}, x);
    const Plan plan = plan_for(x, kForwardUnroll);
    forward_stats(
        plan, {buffer(x), static_cast<double>(weight), buffer(payload)}, workspace_for(plan, x), current_stream());
    return payload;
}

std::tuple<Tensor, Tensor> forward_apply_op(
    const Tensor& x_in, const Tensor& total, std::optional<int64_t> divisor, const OptionalTensor& gamma,
    const OptionalTensor& beta, double eps, const OptionalTensor& running_mean, const OptionalTensor& running_var,
    const OptionalTensor& num_batches_tracked, std::optional<double> momentum) {
    const c10::DeviceGuard guard(x_in.device());
    const Tensor x = on_boundary(dense(x_in)), y = at::empty_like(x), saved = empty_statistics({4, x.size(1)}, x);
    ForwardApply stage = forward_apply_stage(
        x, total, divisor, gamma, beta, eps, running_mean, running_var, num_batches_tracked, momentum, y, saved);
    const Tickets ticket = stage.num_batches_tracked ? tickets(x) : Tickets{};
    stage.tickets = ticket.counters;
    forward_apply(plan_for(x, kForwardUnroll), stage, current_stream());
    return {y, saved};
}

Tensor backward_stats_op(const Tensor& dy_in, const Tensor& x_in, const Tensor& saved) {
    const c10::DeviceGuard guard(x_in.device());
    const Tensor x = on_boundary(dense(x_in)), dy = on_boundary(laid_out_like(dy_in, x));
    const int64_t C = x.size(1);
    const Tensor payload = empty_statistics({2 * C}, x);
    const Plan plan = plan_for(x, kBackwardUnroll);
    backward_stats(
        plan, {buffer(dy), buffer(x), statistics("saved", saved, 4 * C, x), buffer(payload)}, workspace_for(plan, x),
        current_stream());
    return payload;
}

Tensor backward_apply_op(
    const Tensor& dy_in, const Tensor& x_in, const Tensor& total, const Tensor& saved, const OptionalTensor& gamma,
    const at::Scalar& k) {
    const c10::DeviceGuard guard(x_in.device());
    const Tensor x = on_boundary(dense(x_in)), dy = on_boundary(laid_out_like(dy_in, x)), dx = at::empty_like(x);
    const BackwardApply stage = backward_apply_stage(dy, x, total, saved, gamma, k.toDouble(), dx);
    backward_apply(plan_for(x, kBackwardUnroll), stage, current_stream());
    return dx;
}

// Stage 4 and the gradients of gamma and beta, in one kernel.
std::tuple<Tensor, Tensor, Tensor> gradients_op(
    const Tensor& dy_in, const Tensor& x_in, const Tensor& total, const Tensor& saved, const Tensor& gamma,
    const Tensor& beta, const at::Scalar& k, int64_t ranks) {
    const c10::DeviceGuard guard(x_in.device());
    const Tensor x = on_boundary(dense(x_in)), dy = on_boundary(laid_out_like(dy_in, x)), dx = at::empty_like(x);
    const Tensor dgamma = empty_gradient(gamma), dbeta = empty_gradient(beta);
    const BackwardApply stage =
        backward_apply_stage(dy, x, total, saved, gamma, k.toDouble(), dx, dgamma, dbeta, ranks);
    backward_apply(plan_for(x, kBackwardUnroll), stage, current_stream());
    return {dx, dgamma, dbeta};
}

}  // namespace

TORCH_LIBRARY(sbnref, m) { define_stages(m); }

TORCH_LIBRARY_IMPL(sbnref, SBNREF_DISPATCH_KEY, m) {
    implement_stages(m, forward_stats_op, forward_apply_op, backward_stats_op, backward_apply_op, gradients_op);
}

}  // namespace sbnref
