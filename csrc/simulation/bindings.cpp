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
        "The order in which blocks and threads take their turns: 'ascending', 'descending' or 'random:SEED'.");
    m.def(
        "simulate_multiprocessors",
        [](int multiprocessors) {
            static const Device small = simulated_device();
            simulated_device() = multiprocessors > 0 ? device_of(multiprocessors) : small;
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
}
