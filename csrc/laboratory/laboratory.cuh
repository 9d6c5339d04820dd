// Shared by the kernels of the tutorials: the tensor, and two ways for the threads of a block to exchange a number. A
// file of kernels includes this one, and defines functions that take a Problem.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

#ifndef SBNREF_THREADS
#define SBNREF_THREADS 256
#endif
constexpr int kThreads = SBNREF_THREADS;  // per block; a power of two
constexpr int kWarp = 32;

// x and y are (N, C, S) with any strides, the same for both. Passed to kernels by value.
struct Problem {
    int64_t N, C, S;
    int64_t stride_n, stride_c, stride_s;  // in elements
    int64_t splits;                        // blocks that share a channel, if the kernels use it
    double weight, eps;
    const float* x;
    float* y;
    float *mean, *var;  // (C,)
    double* partials;   // (3, splits, C), partial results of blocks
    double* payload;    // (3C + 2,), this rank's payload
    unsigned* tickets;  // (C,), zero before and after
    cudaStream_t stream;

    __host__ __device__ int64_t count() const { return N * S; }  // per channel

    // The index of element i of channel c. A GPU divides integers in software, faster in 32 bits, and a channel has
    // fewer than 2^32 elements.
    __device__ int64_t at(int64_t c, int64_t i) const {
        const auto position = static_cast<unsigned>(i), size = static_cast<unsigned>(S);
        return position / size * stride_n + c * stride_c + position % size * stride_s;
    }
};

// V floats for one access, at a multiple of 4 V bytes.
template <int V>
struct alignas(4 * V) Floats {
    float at[V];
};
template <int V>
__device__ const Floats<V>& floats(const float* p) {
    return *reinterpret_cast<const Floats<V>*>(p);
}
template <int V>
__device__ Floats<V>& floats(float* p) {
    return *reinterpret_cast<Floats<V>*>(p);
}

// The sum over the threads of a block, always added in the same order. Before a second call, which uses the same shared
// memory, call __syncthreads().
__device__ inline double sum_over_block(double value) {
    __shared__ double of_warp[kThreads / kWarp];
    for (int distance = kWarp / 2; distance > 0; distance /= 2) value += __shfl_down_sync(~0u, value, distance);
    if (threadIdx.x % kWarp == 0) of_warp[threadIdx.x / kWarp] = value;
    __syncthreads();
    double sum = 0;
    for (int w = 0; w < kThreads / kWarp; ++w) sum += of_warp[w];
    return sum;
}

// y = (x - center) * scale + shift, of one channel.
struct Line {
    float center, scale, shift;

    __device__ float operator()(float x) const { return (x - center) * scale + shift; }
};

// Broadcasts one thread's value to the block. Call it at most once in a kernel.
template <typename F>
__device__ Line once_per_block(const F& compute) {
    __shared__ Line shared;
    if (threadIdx.x == 0) shared = compute();
    __syncthreads();
    return shared;
}
