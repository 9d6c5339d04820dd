// The functions of the CUDA runtime that are not templates.
#include "host.h"

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "include/cuda_runtime.h"
#include "include/library_types.h"
#include "state.h"

#undef memcpy
#undef memmove
#undef memset

namespace cudasim {
namespace {

cudaError_t last_error = cudaSuccess;

cudaError_t set(cudaError_t error) {
    if (error != cudaSuccess) last_error = error;
    return error;
}

double milliseconds() {
    using namespace std::chrono;
    return duration<double, std::milli>(steady_clock::now().time_since_epoch()).count();
}

const Array* device_array(const void* p) {
    const Array* const array = find(reinterpret_cast<uintptr_t>(p));
    return array != nullptr && !array->freed ? array : nullptr;
}

std::string expected_device(const char* what, const void* p) {
    return std::string("expected GPU memory as the ") + what + ", got " +
           (p == nullptr ? "a null pointer" : "host memory");
}

// Whether the bytes are inside one array, or the host's: a copy beyond its array is a fault.
bool check_range(const char* what, const void* p, size_t bytes, const Site& at) {
    const auto begin = reinterpret_cast<uintptr_t>(p);
    const Array* const array = find(begin);
    if (array == nullptr) return true;
    if (array->freed)
        note_fault(std::string(what) + " " + array->name + " after it was freed", at, {});
    else if (begin + bytes > array->end)
        note_fault(
            std::string(what) + " " + std::to_string(bytes) + " bytes of " + array->name + ", which has " +
                std::to_string(array->end - begin) + " from there on",
            at, {});
    else
        return true;
    end_launch();
    return false;
}

}  // namespace

cudaError_t error_of_launch() { return has_failed() ? cudaErrorLaunchFailure : last_error; }

void not_supported(const char* function) {
    const void* const from = __builtin_return_address(0);
    const std::string what = std::string(function) + ": not supported by the simulation";
    if (running) fault(what, from);
    note_fault(what, site(from), {});
    end_launch();
}

void set_invalid_configuration() { set(cudaErrorInvalidConfiguration); }

cudaError_t allocate_for(void** p, size_t bytes, const char* expression, size_t element, bool host) {
    std::string name = expression;
    if (const size_t cast = name.rfind(')'); cast != std::string::npos && cast + 1 < name.size())
        name.erase(0, cast + 1);
    name.erase(0, name.find_first_not_of("& "));
    *p = bytes == 0 || bytes > cudaDeviceProp{}.totalGlobalMem
             ? nullptr
             : allocate(bytes, name, element, host, site(__builtin_return_address(0)));
    if (*p != nullptr && host) const_cast<Array*>(device_array(*p))->known = true;
    return set(bytes != 0 && *p == nullptr ? cudaErrorMemoryAllocation : cudaSuccess);
}

cudaError_t copy_between(void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    const Site at = site(__builtin_return_address(0));
    if (bytes == 0) return cudaSuccess;
    const Turn turn = take_turn();
    if (!check_range("cudaMemcpy writes", to, bytes, at) || !check_range("cudaMemcpy reads", from, bytes, at))
        return set(cudaErrorInvalidValue);
    const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    const bool wrong_to = to_device && device_array(to) == nullptr;
    if (wrong_to || (from_device && device_array(from) == nullptr)) {
        note_failed_call(
            "cudaMemcpy: " + (wrong_to ? expected_device("destination", to) : expected_device("source", from)), at);
        return set(cudaErrorInvalidValue);
    }
    std::memmove(to, from, bytes);
    if (Array* const array = find(reinterpret_cast<uintptr_t>(to)))
        array->set_written(reinterpret_cast<uintptr_t>(to), bytes);
    return has_failed() ? set(cudaErrorLaunchFailure) : cudaSuccess;
}

}  // namespace cudasim

using namespace cudasim;

cudaError_t cudaFree(void* p) {
    if (p == nullptr) return cudaSuccess;
    if (release(p)) return cudaSuccess;
    const Array* const array = find(reinterpret_cast<uintptr_t>(p));
    const std::string why = array != nullptr && array->freed ? array->name + " was freed before"
                                                             : "expected an address that cudaMalloc has returned";
    note_failed_call("cudaFree: " + why, site(__builtin_return_address(0)));
    return set(cudaErrorInvalidValue);
}

cudaError_t cudaHostRegister(void* p, size_t bytes, unsigned) {
    register_memory("registered host memory", p, bytes, 1);
    find(reinterpret_cast<uintptr_t>(p))->host = true;
    return cudaSuccess;
}
cudaError_t cudaHostUnregister(void* p) { return unregister_memory(p) ? cudaSuccess : set(cudaErrorInvalidValue); }

cudaError_t cudaMemset(void* p, int value, size_t bytes) {
    if (bytes == 0) return cudaSuccess;
    const Turn turn = take_turn();
    const Site at = site(__builtin_return_address(0));
    if (!check_range("cudaMemset writes", p, bytes, at)) return set(cudaErrorInvalidValue);
    if (device_array(p) == nullptr) {
        note_failed_call("cudaMemset: " + expected_device("destination", p), at);
        return set(cudaErrorInvalidValue);
    }
    std::memset(p, value, bytes);
    find(reinterpret_cast<uintptr_t>(p))->set_written(reinterpret_cast<uintptr_t>(p), bytes);
    return cudaSuccess;
}

cudaError_t cudaGetLastError() {
    const cudaError_t error = cudaPeekAtLastError();
    last_error = cudaSuccess;
    return error;
}
cudaError_t cudaPeekAtLastError() {
    handle_failed_calls();
    return cudasim::error_of_launch();
}
cudaError_t cudaDeviceSynchronize() { return has_failed() ? cudaErrorLaunchFailure : cudaSuccess; }

const char* cudaGetErrorString(cudaError_t error) {
    switch (error) {
        case cudaSuccess: return "no error";
        case cudaErrorInvalidValue: return "invalid argument";
        case cudaErrorMemoryAllocation: return "out of memory";
        case cudaErrorInvalidConfiguration: return "invalid configuration argument";
        case cudaErrorInvalidDevice: return "invalid device ordinal";
        case cudaErrorNotSupported: return "not supported by the simulation";
        case cudaErrorNotReady: return "device not ready";
        case cudaErrorLaunchFailure: return has_failed() ? failure().c_str() : "unspecified launch failure";
        default: return "unknown error";
    }
}

const char* cudaGetErrorName(cudaError_t error) {
    switch (error) {
        case cudaSuccess: return "cudaSuccess";
        case cudaErrorInvalidValue: return "cudaErrorInvalidValue";
        case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
        case cudaErrorInvalidConfiguration: return "cudaErrorInvalidConfiguration";
        case cudaErrorInvalidDevice: return "cudaErrorInvalidDevice";
        case cudaErrorNotSupported: return "cudaErrorNotSupported";
        case cudaErrorNotReady: return "cudaErrorNotReady";
        case cudaErrorLaunchFailure: return "cudaErrorLaunchFailure";
        default: return "cudaErrorUnknown";
    }
}

cudaError_t cudaSetDevice(int device) { return device == 0 ? cudaSuccess : set(cudaErrorInvalidDevice); }

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* p, int device) {
    if (device != 0) return set(cudaErrorInvalidDevice);
    *p = cudaDeviceProp{};
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    const cudaDeviceProp p{};
    switch (attribute) {
        case cudaDevAttrMaxThreadsPerBlock: *value = p.maxThreadsPerBlock; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = static_cast<int>(p.sharedMemPerBlock); break;
        case cudaDevAttrWarpSize: *value = p.warpSize; break;
        case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *value = p.maxThreadsPerMultiProcessor; break;
        case cudaDevAttrComputeCapabilityMajor: *value = p.major; break;
        case cudaDevAttrComputeCapabilityMinor: *value = p.minor; break;
        case cudaDevAttrL2CacheSize: *value = p.l2CacheSize; break;
        case cudaDevAttrClockRate: *value = 1'755'000; break;
        case cudaDevAttrMemoryClockRate: *value = 2'619'000; break;
        case cudaDevAttrGlobalMemoryBusWidth: *value = p.memoryBusWidth; break;
        case cudaDevAttrMemoryPoolsSupported:
        case cudaDevAttrGpuOverlap:
        case cudaDevAttrCanMapHostMemory:
        case cudaDevAttrConcurrentKernels:
        case cudaDevAttrStreamPrioritiesSupported: *value = 1; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = static_cast<int>(p.sharedMemPerBlockOptin); break;
        case cudaDevAttrCooperativeLaunch:
        case cudaDevAttrUnifiedAddressing:
        case cudaDevAttrManagedMemory:
        case cudaDevAttrConcurrentManagedAccess: *value = 1; break;
        default: *value = 0;
    }
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
    *total = cudaDeviceProp{}.totalGlobalMem;
    size_t used = 0;
    const Turn turn = take_turn();
    for (const auto& array : allocations()) used += array->freed ? 0 : array->size();
    *free = *total - std::min(used, *total);
    return cudaSuccess;
}

cudaError_t cudaMemcpy2D(
    void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height, cudaMemcpyKind kind) {
    for (size_t row = 0; row < height; ++row) {
        const cudaError_t error = copy_between(
            static_cast<char*>(to) + row * to_pitch, static_cast<const char*>(from) + row * from_pitch, width, kind);
        if (error != cudaSuccess) return error;
    }
    return cudaSuccess;
}

struct cudasim_event {
    double time;
};

cudaError_t cudaStreamCreate(cudaStream_t* stream) {
    static char streams[4096], *next = streams;
    *stream = reinterpret_cast<cudaStream_t>(next == streams + sizeof streams ? next = streams : next++);
    return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) {
    *event = new cudasim_event{-1};
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete event;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t) {
    event->time = milliseconds();
    return cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t start, cudaEvent_t stop) {
    if (start->time < 0 || stop->time < 0) return set(cudaErrorInvalidValue);
    *ms = static_cast<float>(stop->time - start->time);
    return cudaSuccess;
}

#ifdef __APPLE__  // declares C functions without noexcept, and another function for <assert.h>
#define CUDASIM_NOEXCEPT
#define CUDASIM_ASSERT_FAIL __assert_rtn(const char*, const char* file, int line, const char* text)
#else
#define CUDASIM_NOEXCEPT noexcept
#define CUDASIM_ASSERT_FAIL __assert_fail(const char* text, const char* file, unsigned line, const char*)
#endif

// In kernels, clock() counts cycles of the GPU.
extern "C" clock_t clock() CUDASIM_NOEXCEPT {
    if (running) return static_cast<clock_t>(clock64());
    timespec used;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &used);
    return used.tv_sec * CLOCKS_PER_SEC + used.tv_nsec / (1'000'000'000 / CLOCKS_PER_SEC);
}

long long clock64() { return static_cast<long long>(milliseconds() * 1.755e6); }

// Called by <assert.h>.
extern "C" void CUDASIM_ASSERT_FAIL CUDASIM_NOEXCEPT {
    const std::string what = "assertion failed: " + std::string(text);
    if (cudasim::running) fault(what, __builtin_return_address(0));
    std::fprintf(stderr, "%s:%u: %s\n", file, static_cast<unsigned>(line), what.c_str());
    std::abort();
}
