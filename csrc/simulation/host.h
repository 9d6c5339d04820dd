// The CUDA runtime's side of the simulation: reports about launches and memory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "state.h"

namespace cudasim {

struct Launch {
    std::string kernel;
    int line;  // of the launch in its file
    dim3 grid, block;
    int64_t blocks = 0, shared_bytes = 0;        // blocks that ran; shared memory of a block
    int64_t bytes_read = 0, bytes_written = 0;   // of global memory, requested by threads
    int64_t accesses = 0, sectors = 0;           // of warps to global memory; 32-byte sectors that they touched
    int64_t shared_accesses = 0, conflicts = 0;  // of warps to shared memory; extra cycles
};
std::vector<Launch>& counted_launches();

std::string in_kernel_words();
std::string quoted(const std::string& text);  // as a string of JSON
std::string joined(const std::vector<std::string>& parts);
std::string as_json(dim3 size);
std::string as_json(const Site& site);
uint32_t number_of_sites();

}  // namespace cudasim
