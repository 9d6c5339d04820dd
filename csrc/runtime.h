// The operators' interface to the machine: a CUDA device, or its simulation.
#pragma once

#include "plan.h"
#include "tensors.h"

#ifndef SBNREF_CUDASIM
#include <cuda_runtime_api.h>

#include <string>

// Functions of PyTorch that only a build with CUDA has.
extern "C" __attribute__((weak)) AOTITorchError aoti_torch_get_current_cuda_stream(int32_t device, void** stream);
#endif

namespace sbnref {

inline Device device_of(int multiprocessors) { return {multiprocessors, kMinBlocks * kMaxThreads, kMaxThreads}; }

#ifdef SBNREF_CUDASIM

// The simulation works on tensors in the host's memory.
#define SBNREF_DISPATCH_KEY CPU

// The simulated chip. It is small, so that small tensors are split over blocks too. Set it to plan for another chip.
inline Device& simulated_device() {
    static Device device{2, 256, 64};
    return device;
}
inline Device current_device() { return simulated_device(); }
inline std::string cuda_release() { return "simulation"; }
inline unsigned long long stream_id(Stream) { return 0; }
inline unsigned long long capture_id(Stream) { return 0; }
// Allocates like a tensor: a test that watches tensors' memory then sees everything that a kernel may touch.
inline unsigned* zeroed_counters(const Tensor& x) {
    const int64_t size = kTickets;
    const auto zeros = torch::stable::new_zeros(x.handle, {&size, 1}, torch::headeronly::ScalarType::Int);
    return static_cast<unsigned*>((new Tensor(zeros))->data);
}

struct OnDevice {
    Stream stream = nullptr;
    explicit OnDevice(const Tensor&) {}
};

#else

#define SBNREF_DISPATCH_KEY CUDA

inline void check(cudaError_t error) {
    if (error == cudaSuccess) return;
    cudaGetLastError();  // otherwise the next launch would report this error as its own
    throw std::runtime_error(std::string("CUDA error: ") + cudaGetErrorString(error));
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
// The id of a stream. Unlike its handle, the id of a destroyed stream, whose kernels may still run, is never reused.
inline unsigned long long stream_id(Stream stream) {
    unsigned long long id = 0;
    check(cudaStreamGetId(static_cast<cudaStream_t>(stream), &id));
    return id;
}
// The id of the capture that a stream is part of, or 0.
inline unsigned long long capture_id(Stream stream) {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    unsigned long long id = 0;
    check(cudaStreamGetCaptureInfo(static_cast<cudaStream_t>(stream), &status, &id));
    return status == cudaStreamCaptureStatusActive ? id : 0;
}
// Allocates on the current device. A graph that this or another thread captures must not contain the allocation.
inline unsigned* zeroed_counters(const Tensor&) {
    constexpr size_t kBytes = kTickets * sizeof(unsigned);
    void* memory = nullptr;
    cudaStream_t apart = nullptr;
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    check(cudaThreadExchangeStreamCaptureMode(&mode));
    cudaError_t error = cudaStreamCreateWithFlags(&apart, cudaStreamNonBlocking);
    if (error == cudaSuccess) error = cudaMalloc(&memory, kBytes);
    if (error == cudaSuccess) error = cudaMemsetAsync(memory, 0, kBytes, apart);
    if (error == cudaSuccess) error = cudaStreamSynchronize(apart);
    if (apart) cudaStreamDestroy(apart);
    check(cudaThreadExchangeStreamCaptureMode(&mode));
    check(error);
    return static_cast<unsigned*>(memory);
}

namespace {

// Makes a tensor's device the current one, and provides PyTorch's current stream there.
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
