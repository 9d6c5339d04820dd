// The four stages as PyTorch operators, the same ones for CPUs, GPUs and the simulation. A Machine runs a stage on
// dense tensors; run(x, stage) has an overload for each.
#pragma once

#include <string>
#include <tuple>

#include "tensors.h"

namespace sbnref {

template <typename Machine>
Tensor forward_stats_op(Tensor x, int64_t weight) {
    x = Machine::placed(dense(x));
    const Tensor payload = empty_statistics({3 * x.size(1) + 2}, x);
    Machine::run(x, ForwardStats{buffer(x), static_cast<double>(weight), buffer(payload)});
    return payload;
}

template <typename Machine>
std::tuple<Tensor, Tensor> forward_apply_op(
    Tensor x, Tensor total, std::optional<int64_t> divisor, OptionalTensor gamma, OptionalTensor beta, double eps,
    OptionalTensor running_mean, OptionalTensor running_var, OptionalTensor num_batches_tracked,
    std::optional<double> momentum) {
    expect(momentum || !running_mean || num_batches_tracked, "num_batches_tracked for momentum=None, got None");
    expect(
        !num_batches_tracked ||
            (num_batches_tracked->numel() == 1 && num_batches_tracked->scalar_type() == ScalarType::Long &&
             num_batches_tracked->device() == x.device()),
        "num_batches_tracked as one int64 number on x's device");
    x = Machine::placed(dense(x));
    const Tensor y = torch::stable::empty_like(x), saved = empty_statistics({4, x.size(1)}, x);
    Machine::run(
        x, ForwardApply{
               buffer(x), statistics("total", total, 3 * x.size(1) + 2, x), divisor.value_or(0),
               per_channel("gamma", gamma, x), per_channel("beta", beta, x), eps,
               per_channel("running_mean", running_mean, x), per_channel("running_var", running_var, x),
               running_mean && num_batches_tracked ? static_cast<int64_t*>(num_batches_tracked->data_ptr()) : nullptr,
               nullptr, !momentum, momentum.value_or(0), buffer(y), buffer(saved)});
    return {y, saved};
}

template <typename Machine>
Tensor backward_stats_op(Tensor dy, Tensor x, Tensor saved) {
    x = Machine::placed(dense(x)), dy = Machine::placed(laid_out_like(dy, x));
    const Tensor payload = empty_statistics({2 * x.size(1)}, x);
    Machine::run(
        x, BackwardStats{buffer(dy), buffer(x), statistics("saved", saved, 4 * x.size(1), x), buffer(payload)});
    return payload;
}

// Stage 4 and the gradients of gamma and beta, in one go. Where gamma or beta is not there, its gradient is empty.
template <typename Machine>
std::tuple<Tensor, Tensor, Tensor> apply_backward(
    Tensor dy, Tensor x, const Tensor& total, const Tensor& saved, const OptionalTensor& gamma,
    const OptionalTensor& beta, double k, int64_t ranks) {
    x = Machine::placed(dense(x)), dy = Machine::placed(laid_out_like(dy, x));
    const int64_t C = x.size(1);
    const Tensor dx = torch::stable::empty_like(x);
    const auto gradient = [&](const OptionalTensor& parameter) {
        return parameter ? torch::stable::new_empty(*parameter, {&C, 1}) : empty_statistics({0}, x);
    };
    const Tensor dgamma = gradient(gamma), dbeta = gradient(beta);
    const auto written = [&](const char* name, const Tensor& tensor) {
        return tensor.numel() == 0 ? Buffer{} : per_channel(name, tensor, x);
    };
    Machine::run(
        x, BackwardApply{
               buffer(dy), buffer(x), statistics("total", total, 2 * C, x), statistics("saved", saved, 4 * C, x),
               per_channel("gamma", gamma, x), k, buffer(dx), written("dgamma", dgamma), written("dbeta", dbeta),
               static_cast<double>(ranks)});
    return {dx, dgamma, dbeta};
}

template <typename Machine>
Tensor backward_apply_op(Tensor dy, Tensor x, Tensor total, Tensor saved, OptionalTensor gamma, double k) {
    return std::get<0>(apply_backward<Machine>(dy, x, total, saved, gamma, {}, k, 1));
}

template <typename Machine>
std::tuple<Tensor, Tensor, Tensor> gradients_op(
    Tensor dy, Tensor x, Tensor total, Tensor saved, OptionalTensor gamma, OptionalTensor beta, int64_t weight,
    int64_t ranks) {
    const int64_t count = dense(x).numel() / x.size(1);
    const double k = static_cast<double>(weight) / static_cast<double>(std::max<int64_t>(count, 1));
    return apply_backward<Machine>(dy, x, total, saved, gamma, beta, k, ranks);
}

inline void define_stages(torch::stable::detail::StableLibrary& m) {
    m.def("forward_stats(Tensor x, SymInt weight) -> Tensor");
    m.def(
        "forward_apply(Tensor x, Tensor total, int? divisor, Tensor? gamma, Tensor? beta, float eps, "
        "Tensor(a!)? running_mean, Tensor(b!)? running_var, Tensor(c!)? num_batches_tracked, float? momentum) "
        "-> (Tensor, Tensor)");
    m.def("backward_stats(Tensor dy, Tensor x, Tensor saved) -> Tensor");
    m.def("backward_apply(Tensor dy, Tensor x, Tensor total, Tensor saved, Tensor? gamma, float k) -> Tensor");
    // The weight instead of k: torch.compile would compile again for every value of a float.
    m.def(
        "gradients(Tensor dy, Tensor x, Tensor total, Tensor saved, Tensor? gamma, Tensor? beta, SymInt weight, "
        "int ranks) -> (Tensor, Tensor, Tensor)");
}

template <typename Machine>
void implement_stages(torch::stable::detail::StableLibrary& m) {
    m.impl("forward_stats", TORCH_BOX(&forward_stats_op<Machine>));
    m.impl("forward_apply", TORCH_BOX(&forward_apply_op<Machine>));
    m.impl("backward_stats", TORCH_BOX(&backward_stats_op<Machine>));
    m.impl("backward_apply", TORCH_BOX(&backward_apply_op<Machine>));
    m.impl("gradients", TORCH_BOX(&gradients_op<Machine>));
}

}  // namespace sbnref
