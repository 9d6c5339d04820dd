// What is not a tensor operation: how this library was built, the launch plan for a shape, the simulation's controls.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/headeronly/version.h>

#include "runtime.h"

#ifdef SBNREF_CUDASIM
#include "simulation/host.h"

extern "C" const char* cudasim_set_order(const char* order);
extern "C" void cudasim_reset();
#else
#include <cuda_runtime_api.h>
#endif

namespace py = pybind11;
using namespace sbnref;

namespace {

py::dict build_info() {
    py::dict info;
    info["torch"] = TORCH_VERSION;
    info["compiler"] = __VERSION__;
#ifdef SBNREF_CUDASIM
    info["simulated"] = true;
    info["cuda"] = py::none();
#else
    info["simulated"] = false;
    info["cuda"] = std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
#endif
    return info;
}

py::dict launch_plan(
    int64_t outer, int64_t channels, int64_t inner, int element_size, bool backward, int multiprocessors) {
    Device device = current_device();
    if (multiprocessors > 0) device = {multiprocessors, kMinBlocks * kMaxThreads, kMaxThreads};
    const Plan plan =
        make_plan(outer, channels, inner, element_size, backward ? kBackwardUnroll : kForwardUnroll, device);
    py::dict result;
    constexpr const char* kLayouts[] = {"channels-first", "short runs", "channels-last"};
    result["layout"] = kLayouts[static_cast<int>(plan.layout)];
    result["inner"] = plan.inner;
    result["grid"] = plan.blocks();
    result["block"] = plan.threads;
    result["vector"] = plan.vector;
    result["lanes"] = plan.lanes;
    result["rows"] = plan.rows();
    result["edges"] = plan.edges.columns;
    result["tile_channels"] = plan.tile_channels;
    result["tiles"] = plan.tiles;
    result["splits"] = plan.splits;
    return result;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
    m.def("build_info", &build_info, "How this library was built.");
    m.def(
        "launch_plan", &launch_plan,
        "The plan for a dense tensor that is (outer, channels, inner) in memory. multiprocessors: of the chip to plan "
        "for; 0 for this one.",
        py::arg("outer"), py::arg("channels"), py::arg("inner"), py::arg("element_size"), py::kw_only(),
        py::arg("backward") = false, py::arg("multiprocessors") = 0);
#ifdef SBNREF_CUDASIM
    m.def(
        "set_order",
        [](const std::string& order) {
            if (const char* const error = cudasim_set_order(order.c_str())) throw py::value_error(error);
        },
        "The order in which blocks and threads take their turns: 'ascending', 'descending' or 'random:SEED'.");
    m.def(
        "simulate_multiprocessors",
        [](int multiprocessors) {
            static const Device small = simulated_device();
            simulated_device() =
                multiprocessors > 0 ? Device{multiprocessors, kMinBlocks * kMaxThreads, kMaxThreads} : small;
        },
        "Plan as for a GPU of so many multiprocessors; 0 goes back to the small one that is simulated by default.");
    m.def("start_counting", &cudasim_reset, "Count what the launches from here on do to global memory.");
    m.def(
        "stop_counting",
        [] {
            py::list launches;
            for (const cudasim::Launch& l : cudasim::counted_launches()) {
                py::dict launch;
                launch["kernel"] = l.kernel;
                launch["bytes_read"] = l.bytes_read;
                launch["bytes_written"] = l.bytes_written;
                launch["sectors"] = l.sectors;
                launches.append(launch);
            }
            return launches;
        },
        "What the launches since start_counting did: bytes that the threads asked for, and 32-byte sectors that the "
        "accesses of the warps touched.");
#endif
}
