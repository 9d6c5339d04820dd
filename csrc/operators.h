// The four stages as PyTorch operators, shared by CPUs, GPUs and the simulation. A Machine runs a stage on dense
// tensors; run(x, stage) has an overload for each stage.
#pragma once

#include <string>
#include <tuple>

#include "tensors.h"

namespace sbnref {

using Handle = torch::stable::Tensor;

// The error of the last failed call on this thread.
inline std::string& failure() {
    thread_local std::string message;
    return message;
}

// Wraps an operator that returns tensors for PyTorch. No exception may leave it, because the library in a wheel has its
// own C++ runtime. If f throws, the tensors are undefined, None in Python, and failure() has the message.
template <auto f>
void boxed(StableIValue* stack, uint64_t inputs, uint64_t outputs) {
    try {
        torch::stable::detail::boxer<std::remove_pointer_t<decltype(f)>, f>::boxed_fn(stack, inputs, outputs);
    } catch (const std::exception& error) {
        failure() = error.what();
        for (uint64_t i = 0; i < outputs; ++i) {
            AtenTensorHandle undefined = nullptr;
            aoti_torch_new_uninitialized_tensor(&undefined);
            stack[i] = torch::stable::detail::from(undefined);
        }
    }
}

template <typename Machine>
Handle forward_stats_op(const Handle& x_in, int64_t weight) {
    const Tensor x = Machine::placed(dense(x_in)), payload = allocate_statistics(3 * x.channels() + 2, x);
    Machine::run(x, ForwardStats{buffer(x), static_cast<double>(weight), buffer(payload)});
    return payload.handle;
}

// The address of num_batches_tracked, or null.
inline int64_t* counter(const OptionalTensor& tensor, const Tensor& x) {
    if (!tensor) return nullptr;
    const Tensor count = *tensor;
    expect(
        count.size == 1 && count.dtype == aoti_torch_dtype_int64() && count.beside(x),
        "num_batches_tracked as one int64 number on x's device, got ", count);
    return static_cast<int64_t*>(count.data);
}

template <typename Machine>
std::tuple<Handle, Handle> forward_apply_op(
    const Handle& x_in, const Handle& total, std::optional<int64_t> divisor, const OptionalTensor& gamma,
    const OptionalTensor& beta, double eps, const OptionalTensor& running_mean, const OptionalTensor& running_var,
    const OptionalTensor& num_batches_tracked, std::optional<double> momentum) {
    expect(momentum || !running_mean || num_batches_tracked, "num_batches_tracked for momentum=None, got None");
    const Tensor x = Machine::placed(dense(x_in)), y = allocate_like(x),
                 saved = allocate_statistics(4, x.channels(), x);
    int64_t* const steps = counter(num_batches_tracked, x);
    Machine::run(
        x, ForwardApply{
               buffer(x), statistics("total", total, 3 * x.channels() + 2, x), divisor.value_or(0),
               per_channel("gamma", gamma, x), per_channel("beta", beta, x), eps,
               per_channel("running_mean", running_mean, x), per_channel("running_var", running_var, x),
               running_mean ? steps : nullptr, nullptr, !momentum, momentum.value_or(0), buffer(y), buffer(saved)});
    return {y.handle, saved.handle};
}

template <typename Machine>
Handle backward_stats_op(const Handle& dy_in, const Handle& x_in, const Handle& saved) {
    const Tensor x = Machine::placed(dense(x_in)), dy = Machine::placed(laid_out_like(dy_in, x)),
                 payload = allocate_statistics(2 * x.channels(), x);
    Machine::run(
        x, BackwardStats{buffer(dy), buffer(x), statistics("saved", saved, 4 * x.channels(), x), buffer(payload)});
    return payload.handle;
}

template <typename Machine>
Handle backward_apply_op(
    const Handle& dy_in, const Handle& x_in, const Handle& total, const Handle& saved, const OptionalTensor& gamma,
    double k) {
    const Tensor x = Machine::placed(dense(x_in)), dy = Machine::placed(laid_out_like(dy_in, x)), dx = allocate_like(x);
    const int64_t C = x.channels();
    Machine::run(
        x, BackwardApply{
               buffer(dy),
               buffer(x),
               statistics("total", total, 2 * C, x),
               statistics("saved", saved, 4 * C, x),
               per_channel("gamma", gamma, x),
               k,
               buffer(dx),
               {},
               {},
               1});
    return dx.handle;
}

// Stage 4 and the gradients of gamma and beta in one launch. The gradient of a missing parameter is empty.
template <typename Machine>
std::tuple<Handle, Handle, Handle> gradients_op(
    const Handle& dy_in, const Handle& x_in, const Handle& total, const Handle& saved, const OptionalTensor& gamma,
    const OptionalTensor& beta, int64_t weight, int64_t ranks) {
    const Tensor x = Machine::placed(dense(x_in)), dy = Machine::placed(laid_out_like(dy_in, x)), dx = allocate_like(x);
    const int64_t C = x.channels();
    const double k = static_cast<double>(weight) / static_cast<double>(std::max<int64_t>(x.size / C, 1));
    const auto gradient = [&](const OptionalTensor& parameter) {
        return parameter ? allocate_vector(C, Tensor(*parameter).dtype, x) : allocate_statistics(0, x);
    };
    const Tensor dgamma = gradient(gamma), dbeta = gradient(beta);
    Machine::run(
        x, BackwardApply{
               buffer(dy), buffer(x), statistics("total", total, 2 * C, x), statistics("saved", saved, 4 * C, x),
               per_channel("gamma", gamma, x), k, buffer(dx), gamma ? buffer(dgamma) : Buffer{},
               beta ? buffer(dbeta) : Buffer{}, static_cast<double>(ranks)});
    return {dx.handle, dgamma.handle, dbeta.handle};
}

inline std::string failure_op() { return failure(); }

inline void define_stages(torch::stable::detail::StableLibrary& m) {
    m.def("failure() -> str");
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
    m.impl("forward_stats", boxed<&forward_stats_op<Machine>>);
    m.impl("forward_apply", boxed<&forward_apply_op<Machine>>);
    m.impl("backward_stats", boxed<&backward_stats_op<Machine>>);
    m.impl("backward_apply", boxed<&backward_apply_op<Machine>>);
    m.impl("gradients", boxed<&gradients_op<Machine>>);
}

}  // namespace sbnref
