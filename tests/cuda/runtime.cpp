// A stand-in for the CUDA runtime: a launch calls a function of the test, and all memory of tensors is known.
//
// Linked with the host half of the kernels, as nvcc compiles it, this file makes a library of the four stages. Loaded
// before the simulation's library, it replaces that library's stages; operators, plans and arguments are the package's.
#include <c10/core/CPUAllocator.h>
#include <cuda_runtime_api.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

namespace {

// ---- memory ----

std::mutex mutex;
std::map<uintptr_t, size_t> allocated;  // bytes, by address

// Allocate garbage, NaN in every floating type, and record the allocation.
struct KnownMemory final : c10::Allocator {
    static void free(void* data) {
        const std::lock_guard<std::mutex> lock(mutex);
        allocated.erase(reinterpret_cast<uintptr_t>(data));
        std::free(data);
    }
    c10::DataPtr allocate(size_t bytes) override {
        const c10::Device cpu(c10::DeviceType::CPU);
        if (bytes == 0) return {nullptr, nullptr, &free, cpu};
        void* const data = std::aligned_alloc(64, (bytes + 63) / 64 * 64);
        std::memset(data, 0xff, bytes);
        const std::lock_guard<std::mutex> lock(mutex);
        allocated[reinterpret_cast<uintptr_t>(data)] = bytes;
        return {data, data, &free, cpu};
    }
    c10::DeleterFnPtr raw_deleter() const override { return &free; }
    void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

// ---- launches ----

using Launcher = const char* (*)(const char* kernel, unsigned blocks, unsigned threads, size_t shared_bytes, void** arguments);

Launcher launcher = nullptr;
// Mangled names by host function; kernels are registered before this file's variables are initialized.
std::map<const void*, std::string>& kernels() {
    static std::map<const void*, std::string> kernels;
    return kernels;
}
std::string said;                            // error of the last launch, if it failed

struct Configuration {
    dim3 grid, block;
    size_t shared_bytes;
    void* stream;
} configuration;

}  // namespace

extern "C" {

void launch_with(Launcher function) {
    launcher = function;
    static KnownMemory memory;
    c10::SetCPUAllocator(&memory, 255);
}

// Write the address and size of each allocation while pairs have room; return the number of allocations.
size_t known_memory(uintptr_t (*pairs)[2], size_t room) {
    const std::lock_guard<std::mutex> lock(mutex);
    for (const auto& [address, bytes] : allocated)
        if (room > 0) --room, (*pairs)[0] = address, (*pairs)[1] = bytes, ++pairs;
    return allocated.size();
}

void** __cudaRegisterFatBinary(void* binary) { return static_cast<void**>(binary); }
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(
    void**, const char* called, char*, const char* name, int, uint3*, uint3*, dim3*, dim3*, int*) {
    kernels()[called] = name;
}

unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream) {
    configuration = {grid, block, shared_bytes, stream};
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared_bytes, void* stream) {
    *grid = configuration.grid, *block = configuration.block, *shared_bytes = configuration.shared_bytes;
    *static_cast<void**>(stream) = configuration.stream;
    return cudaSuccess;
}

cudaError_t cudaLaunchKernel(
    const void* called, dim3 grid, dim3 block, void** arguments, size_t shared_bytes, cudaStream_t) {
    const bool one_dimension = grid.y == 1 && grid.z == 1 && block.y == 1 && block.z == 1;
    said = one_dimension ? launcher(kernels().at(called).c_str(), grid.x, block.x, shared_bytes, arguments)
                         : "expected a launch in one dimension";
    return said.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}
// CUDA 13 launches a kernel by a handle; here the handle is the host function.
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* called) {
    *kernel = static_cast<cudaKernel_t>(const_cast<void*>(called));
    return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(
    cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, size_t shared_bytes, cudaStream_t stream) {
    return cudaLaunchKernel(kernel, grid, block, arguments, shared_bytes, stream);
}
cudaError_t cudaGetLastError() { return said.empty() ? cudaSuccess : cudaErrorLaunchFailure; }
const char* cudaGetErrorString(cudaError_t) { return said.c_str(); }

}  // extern "C"
