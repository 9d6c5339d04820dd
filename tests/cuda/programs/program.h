// Shared by the programs: arrays on the GPU, and checks that report their line.
#pragma once

#include <cuda_runtime.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#define EXPECT(condition)                                                             \
    if (!(condition)) {                                                               \
        std::fprintf(stderr, "%s:%d: expected %s\n", __FILE__, __LINE__, #condition); \
        std::exit(1);                                                                 \
    }
#define CUDA(call) EXPECT((call) == cudaSuccess)

// An uninitialized array on the GPU.
template <typename T>
T* on_gpu(size_t n) {
    T* p;
    CUDA(cudaMalloc(&p, n * sizeof(T)));
    return p;
}

template <typename T>
T* on_gpu(const std::vector<T>& values) {
    T* const p = on_gpu<T>(values.size());
    CUDA(cudaMemcpy(p, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice));
    return p;
}

template <typename T>
T* zeros_on_gpu(size_t n) {
    return on_gpu(std::vector<T>(n));
}

// Copy an array to the host and free it.
template <typename T>
std::vector<T> take(T* p, size_t n) {
    std::vector<T> values(n);
    CUDA(cudaGetLastError());
    CUDA(cudaMemcpy(values.data(), p, n * sizeof(T), cudaMemcpyDeviceToHost));
    CUDA(cudaFree(p));
    return values;
}

// Small integers, whose sums are exact in float.
inline std::vector<float> numbers(size_t n) {
    std::vector<float> values(n);
    for (size_t i = 0; i < n; ++i) values[i] = static_cast<float>(i * 7 % 13) - 5;
    return values;
}

inline float sum(const std::vector<float>& values) {
    float total = 0;
    for (const float value : values) total += value;
    return total;
}

inline bool close(double a, double b) { return std::abs(a - b) <= 1e-4 * (1 + std::abs(b)); }
