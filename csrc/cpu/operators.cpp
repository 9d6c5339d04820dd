// The four stages for CPU tensors as PyTorch operators, and what they ask of the machine: threads, the size of its
// cache.
#include <torch/csrc/stable/c/shim.h>

#include <fstream>
#include <string>
#include <tuple>

#include "../tensors.h"
#include "stages.h"

namespace sbnref::cpu {

void in_parallel(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& f) {
    // PyTorch's threads through its C interface: at::parallel_for is a template that would bring a second runtime of
    // OpenMP where the compiler is not the one that PyTorch was built with.
    const auto call = [](int64_t begin, int64_t end, void* f) {
        (*static_cast<const std::function<void(int64_t, int64_t)>*>(f))(begin, end);
    };
    TORCH_CHECK(torch_parallel_for(0, count, grain, call, const_cast<void*>(static_cast<const void*>(&f))) == 0);
}

int64_t last_level_cache() {
    static const int64_t bytes = [] {
        for (const char* index : {"3", "2"}) {  // Linux's list; what sysconf says counts other machines' shares in VMs
            std::ifstream file(std::string("/sys/devices/system/cpu/cpu0/cache/index") + index + "/size");
            if (int64_t kibibytes = 0; file >> kibibytes) return kibibytes << 10;
        }
        return int64_t{32} << 20;
    }();
    return bytes;
}

namespace {

// How this library was built, and what it found.
std::tuple<std::string, int64_t, int64_t> build_info() { return {__VERSION__, 8 * kRegisterBytes, last_level_cache()}; }

Tensor forward_stats_op(const Tensor& x_in, int64_t weight) {
    const Tensor x = dense(x_in), payload = empty_statistics({3 * x.size(1) + 2}, x);
    forward_stats(shape_of(x), {buffer(x), static_cast<double>(weight), buffer(payload)});
    return payload;
}

std::tuple<Tensor, Tensor> forward_apply_op(
    const Tensor& x_in, const Tensor& total, std::optional<int64_t> divisor, const OptionalTensor& gamma,
    const OptionalTensor& beta, double eps, const OptionalTensor& running_mean, const OptionalTensor& running_var,
    const OptionalTensor& num_batches_tracked, std::optional<double> momentum) {
    const Tensor x = dense(x_in), y = at::empty_like(x), saved = empty_statistics({4, x.size(1)}, x);
    forward_apply(
        shape_of(x),
        forward_apply_stage(
            x, total, divisor, gamma, beta, eps, running_mean, running_var, num_batches_tracked, momentum, y, saved));
    return {y, saved};
}

Tensor backward_stats_op(const Tensor& dy_in, const Tensor& x_in, const Tensor& saved) {
    const Tensor x = dense(x_in), dy = laid_out_like(dy_in, x), payload = empty_statistics({2 * x.size(1)}, x);
    backward_stats(shape_of(x), {buffer(dy), buffer(x), statistics("saved", saved, 4 * x.size(1), x), buffer(payload)});
    return payload;
}

Tensor backward_apply_op(
    const Tensor& dy_in, const Tensor& x_in, const Tensor& total, const Tensor& saved, const OptionalTensor& gamma,
    const at::Scalar& k) {
    const Tensor x = dense(x_in), dy = laid_out_like(dy_in, x), dx = at::empty_like(x);
    backward_apply(shape_of(x), backward_apply_stage(dy, x, total, saved, gamma, k.toDouble(), dx));
    return dx;
}

// Stage 4 and the gradients of gamma and beta, in one go.
std::tuple<Tensor, Tensor, Tensor> gradients_op(
    const Tensor& dy_in, const Tensor& x_in, const Tensor& total, const Tensor& saved, const Tensor& gamma,
    const Tensor& beta, const at::Scalar& k, int64_t ranks) {
    const Tensor x = dense(x_in), dy = laid_out_like(dy_in, x), dx = at::empty_like(x);
    const Tensor dgamma = empty_gradient(gamma), dbeta = empty_gradient(beta);
    backward_apply(
        shape_of(x), backward_apply_stage(dy, x, total, saved, gamma, k.toDouble(), dx, dgamma, dbeta, ranks));
    return {dx, dgamma, dbeta};
}

}  // namespace

TORCH_LIBRARY(sbnref_cpu, m) {
    define_stages(m);
    m.def("build_info() -> (str compiler, int vector_bits, int last_level_cache)", build_info);
}

TORCH_LIBRARY_IMPL(sbnref_cpu, CPU, m) {
    implement_stages(m, forward_stats_op, forward_apply_op, backward_stats_op, backward_apply_op, gradients_op);
}

}  // namespace sbnref::cpu
