// What the operators ask of the machine they run on: a CUDA device, or its simulation.
#pragma once

#include "plan.h"
#include "tensors.h"

#ifndef SBNREF_CUDASIM
#include <cuda_runtime_api.h>

#include <string>

// PyTorch's, in the library that one without CUDA does not have.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);
#endif

namespace sbnref {

inline Device device_of(int multiprocessors) { return {multiprocessors, kMinBlocks * kMaxThreads, kMaxThreads}; }

// Tickets as a tensor.
inline Tensor zeros(const Tensor& x) {
    const int64_t size = kTickets;
    return torch::stable::new_zeros(x.handle, {&size, 1}, torch::headeronly::ScalarType::Int);
}

#ifdef SBNREF_CUDASIM

// Tensors that the simulation works on lie in the host's memory.
#define SBNREF_DISPATCH_KEY CPU

// The chip that is simulated. A small one, so that small tensors are split over blocks too; the plan for another can be
// had by setting it.
inline Device& simulated_device() {
    static Device device{2, 256, 64};
    return device;
}
inline Device current_device() { return simulated_device(); }
inline std::string cuda_release() { return "simulation"; }
inline bool capturing(Stream) { return false; }
// From where tensors have theirs: a test that watches their memory has to know all that a kernel may touch.
inline unsigned* zeroed_counters(const Tensor& x, Stream) {
    return static_cast<unsigned*>((new Tensor(zeros(x)))->data);
}

struct OnDevice {
    Stream stream = nullptr;
    explicit OnDevice(const Tensor&) {}
};

#else

#define SBNREF_DISPATCH_KEY CUDA

inline void check(cudaError_t error) {
    if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA error: ") + cudaGetErrorString(error));
}

inline Device current_device() {
    int device = 0, multiprocessors = 0;
    check(cudaGetDevice(&device));
    check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device));
    return device_of(multiprocessors);
}
inline std::string cuda_release() {
    return std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
}
inline bool capturing(Stream stream) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    check(cudaStreamIsCapturing(static_cast<cudaStream_t>(stream), &status));
    return status != cudaStreamCaptureStatusNone;
}
// On the current device, zero before what the stream does next. Another thread may be capturing a graph.
inline unsigned* zeroed_counters(const Tensor&, Stream stream) {
    constexpr size_t kBytes = kTickets * sizeof(unsigned);
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    check(cudaThreadExchangeStreamCaptureMode(&mode));
    void* memory = nullptr;
    const cudaError_t allocated = cudaMalloc(&memory, kBytes);
    const cudaError_t cleared =
        allocated != cudaSuccess ? allocated : cudaMemsetAsync(memory, 0, kBytes, static_cast<cudaStream_t>(stream));
    check(cudaThreadExchangeStreamCaptureMode(&mode));
    check(cleared);
    return static_cast<unsigned*>(memory);
}

namespace {

// Makes a tensor's device the current one, and has PyTorch's current stream there.
struct OnDevice {
    torch::stable::accelerator::DeviceGuard guard;
    Stream stream = nullptr;
    explicit OnDevice(const Tensor& x) : guard(x.device) {
        TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(x.device, &stream));
    }
};

}  // namespace

#endif

}  // namespace sbnref
