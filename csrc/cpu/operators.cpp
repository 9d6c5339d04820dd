// The operators for CPU tensors, and their view of the machine: threads and the size of its cache.
#include "../operators.h"

#include <fstream>

#include "stages.h"

namespace sbnref::cpu {

void in_parallel(int64_t count, int64_t grain, const std::function<void(int64_t, int64_t)>& f) {
    torch::stable::parallel_for(0, count, grain, f);
}

int64_t last_level_cache() {
    static const int64_t bytes = [] {
        for (const char* index : {"3", "2"}) {  // Linux's list, because sysconf is wrong for shares in virtual machines
            std::ifstream file(std::string("/sys/devices/system/cpu/cpu0/cache/index") + index + "/size");
            if (int64_t kibibytes = 0; file >> kibibytes) return kibibytes << 10;
        }
        return int64_t{32} << 20;
    }();
    return bytes;
}

namespace {

// The compiler of this library, its vector size, and the size of the cache.
std::tuple<std::string, int64_t, int64_t> build_info() { return {__VERSION__, 8 * kRegisterBytes, last_level_cache()}; }

struct Cpu {
    static Tensor placed(const Tensor& dense) { return dense; }
    static void run(const Tensor& x, const ForwardStats& stage) { forward_stats(shape_of(x), stage); }
    static void run(const Tensor& x, const ForwardApply& stage) { forward_apply(shape_of(x), stage); }
    static void run(const Tensor& x, const BackwardStats& stage) { backward_stats(shape_of(x), stage); }
    static void run(const Tensor& x, const BackwardApply& stage) { backward_apply(shape_of(x), stage); }
};

}  // namespace

STABLE_TORCH_LIBRARY(sbnref_cpu, m) {
    define_stages(m);
    m.def("build_info() -> (str compiler, int vector_bits, int last_level_cache)");
}

STABLE_TORCH_LIBRARY_IMPL(sbnref_cpu, CPU, m) { implement_stages<Cpu>(m); }

STABLE_TORCH_LIBRARY_IMPL(sbnref_cpu, CompositeExplicitAutograd, m) {
    m.impl("build_info", TORCH_BOX(&build_info));
    m.impl("failure", TORCH_BOX(&failure_op));
}

}  // namespace sbnref::cpu
