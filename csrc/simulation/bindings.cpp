// The simulation's controls, for Python.
#include <pybind11/pybind11.h>

#include "../runtime.h"
#include "host.h"

extern "C" const char* cudasim_set_order(const char* order);
extern "C" void cudasim_reset();

namespace py = pybind11;
using namespace sbnref;

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
    m.def(
        "set_order",
        [](const std::string& order) {
            if (const char* const error = cudasim_set_order(order.c_str())) throw py::value_error(error);
        },
        "Set the order in which blocks and threads run: 'ascending', 'descending' or 'random:SEED'.");
    m.def(
        "simulate_multiprocessors",
        [](int multiprocessors) {
            static const Device small = simulated_device();
            simulated_device() = multiprocessors > 0 ? device_of(multiprocessors) : small;
        },
        "Plan for a GPU with a number of multiprocessors; 0 restores the small default GPU.");
    m.def("start_counting", &cudasim_reset, "Count accesses to global memory from here on.");
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
        "Return the launches since start_counting, with the bytes requested by threads and the 32-byte sectors touched "
        "by warps.");
}
