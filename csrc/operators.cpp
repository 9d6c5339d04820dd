// The operators for CUDA tensors and for the simulation: the launch plan and the workspace.
#include "operators.h"

#include <map>
#include <mutex>
#include <tuple>

#include "plan.h"
#include "runtime.h"

namespace sbnref {
namespace {

// ---- the workspace: memory that the blocks of a launch share ----

// Counters that are zero before and after every launch, so that no launch needs a memset. There is one set for each
// stream, because launches on one stream follow each other. A CUDA graph may run on any stream, in parallel with other
// work, so each capture has its own sets, made outside of the graph. They are not memory from PyTorch's allocator:
// memory that it returns while a graph is warmed up or captured belongs to that graph, which takes it back.
unsigned* tickets(const Tensor& x, Stream stream) {
    static std::mutex mutex;
    static std::map<std::tuple<int, unsigned long long, unsigned long long>, unsigned*>
        sets;  // 16 KiB each, never freed
    const std::lock_guard<std::mutex> lock(mutex);
    unsigned*& mine = sets[{x.device, stream_id(stream), capture_id(stream)}];
    if (mine == nullptr) mine = zeroed_counters(x);
    return mine;
}

struct WorkspaceTensors {
    std::optional<Tensor> partials;
    unsigned* tickets = nullptr;
    operator Workspace() const {
        if (!partials) return {};
        return {static_cast<double*>(partials->data), partials->size, tickets};
    }
};

WorkspaceTensors workspace_for(const Plan& plan, const Tensor& x, Stream stream) {
    if (plan.splits == 1) return {};
    return {allocate_statistics(plan.blocks() * plan.tile_channels * 2, x), tickets(x, stream)};
}

// ---- the machine ----

Plan plan_for(const Tensor& x, int unroll) {
    const Shape shape = shape_of(x);
    return make_plan(
        shape.outer, shape.channels, shape.inner, static_cast<int>(x.element_size()), unroll, current_device());
}

struct Gpu {
    // The tensor itself if it starts on a boundary of the widest access, as nearly always, otherwise a copy.
    static Tensor placed(const Tensor& dense) {
        return dense.starts_on(kAccessBytes) ? dense : Tensor(torch::stable::clone(dense.handle));
    }

    static void run(const Tensor& x, const ForwardStats& stage) {
        const OnDevice device(x);
        const Plan plan = plan_for(x, kForwardUnroll);
        forward_stats(plan, stage, workspace_for(plan, x, device.stream), device.stream);
    }
    static void run(const Tensor& x, ForwardApply stage) {
        const OnDevice device(x);
        if (stage.num_batches_tracked && stage.cumulative) stage.tickets = tickets(x, device.stream);
        forward_apply(plan_for(x, kForwardUnroll), stage, device.stream);
    }
    static void run(const Tensor& x, const BackwardStats& stage) {
        const OnDevice device(x);
        const Plan plan = plan_for(x, kBackwardUnroll);
        backward_stats(plan, stage, workspace_for(plan, x, device.stream), device.stream);
    }
    static void run(const Tensor& x, const BackwardApply& stage) {
        const OnDevice device(x);
        backward_apply(plan_for(x, kBackwardUnroll), stage, device.stream);
    }
};

// The compiler and CUDA version of this library; CUDA is "simulation" in the simulation.
std::tuple<std::string, std::string> build_info() { return {__VERSION__, cuda_release()}; }

// The plan for a dense tensor that is (outer, channels, inner) in memory, on a chip with a number of multiprocessors,
// or 0 for this chip. sbnref/debugging/launch_plan.py has the names of the numbers. Empty on failure, see `boxed`.
std::vector<int64_t> launch_plan(
    int64_t outer, int64_t channels, int64_t inner, int64_t element_size, bool backward, int64_t multiprocessors) {
    try {
        const Device device = multiprocessors > 0 ? device_of(static_cast<int>(multiprocessors)) : current_device();
        const Plan plan = make_plan(
            outer, channels, inner, static_cast<int>(element_size), backward ? kBackwardUnroll : kForwardUnroll,
            device);
        return {
            static_cast<int64_t>(plan.layout),
            plan.inner,
            plan.blocks(),
            plan.threads,
            plan.vector,
            plan.lanes,
            plan.rows(),
            plan.edges.columns,
            plan.tile_channels,
            plan.tiles,
            plan.splits};
    } catch (const std::exception& error) {
        failure() = error.what();
        return {};
    }
}

}  // namespace

STABLE_TORCH_LIBRARY(sbnref, m) {
    define_stages(m);
    m.def("build_info() -> (str compiler, str cuda)");
    m.def(
        "launch_plan(int outer, int channels, int inner, int element_size, bool backward, int multiprocessors) "
        "-> int[]");
}

STABLE_TORCH_LIBRARY_IMPL(sbnref, SBNREF_DISPATCH_KEY, m) { implement_stages<Gpu>(m); }

STABLE_TORCH_LIBRARY_IMPL(sbnref, CompositeExplicitAutograd, m) {
    m.impl("build_info", TORCH_BOX(&build_info));
    m.impl("failure", TORCH_BOX(&failure_op));
    m.impl("launch_plan", TORCH_BOX(&launch_plan));
}

}  // namespace sbnref
