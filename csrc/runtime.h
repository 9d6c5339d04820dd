// What the operators ask of the machine they run on: a CUDA device, or its simulation.
#pragma once

#include "plan.h"
#include "stages.h"

#ifdef SBNREF_CUDASIM
#include <cstdlib>
#else
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAFunctions.h>
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

#else

#define SBNREF_DISPATCH_KEY CUDA

inline Device current_device() {
    static Device devices[C10_COMPILE_TIME_MAX_GPUS] = {};
    Device& device = devices[c10::cuda::current_device()];
    if (device.multiprocessors == 0)
        C10_CUDA_CHECK(cudaDeviceGetAttribute(
            &device.multiprocessors, cudaDevAttrMultiProcessorCount, c10::cuda::current_device()));
    device.threads_per_multiprocessor = kMinBlocks * kMaxThreads;
    device.threads_per_block = kMaxThreads;
    return device;
}
inline Stream current_stream() { return c10::cuda::getCurrentCUDAStream().stream(); }
inline bool capturing() {
    return c10::cuda::currentStreamCaptureStatusMayInitCtx() != c10::cuda::CaptureStatus::None;
}

#endif

}  // namespace sbnref
