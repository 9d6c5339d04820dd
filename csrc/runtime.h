// What the operators ask of the machine they run on: a CUDA device, or its simulation.
#pragma once

#include "plan.h"
#include "stages.h"

#ifdef SBNREF_CUDASIM
#include <c10/core/CPUAllocator.h>

#include <cstring>
#else
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
#include <c10/cuda/CUDAGraphsC10Utils.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace sbnref {

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
inline Stream current_stream() { return nullptr; }
inline bool capturing() { return false; }
// From where tensors have theirs, so that whoever knows their memory knows all that a kernel may touch.
inline void* zeroed_memory(size_t bytes) { return std::memset(c10::GetCPUAllocator()->raw_allocate(bytes), 0, bytes); }

#else

#define SBNREF_DISPATCH_KEY CUDA

inline Device current_device() {
    int multiprocessors = 0;
    C10_CUDA_CHECK(
        cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, c10::cuda::current_device()));
    return {multiprocessors, kMinBlocks * kMaxThreads, kMaxThreads};
}
inline Stream current_stream() { return c10::cuda::getCurrentCUDAStream().stream(); }
inline bool capturing() {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    C10_CUDA_CHECK(cudaStreamIsCapturing(static_cast<cudaStream_t>(current_stream()), &status));
    return status != cudaStreamCaptureStatusNone;
}
// On the current device, zero before what the current stream does next. Another thread may be capturing a graph.
inline void* zeroed_memory(size_t bytes) {
    const c10::cuda::CUDAStreamCaptureModeGuard guard(cudaStreamCaptureModeRelaxed);
    void* memory = nullptr;
    C10_CUDA_CHECK(cudaMalloc(&memory, bytes));
    C10_CUDA_CHECK(cudaMemsetAsync(memory, 0, bytes, static_cast<cudaStream_t>(current_stream())));
    return memory;
}

#endif

}  // namespace sbnref
