// What kernels of the laboratory are written in: the tensor, the two ways in which the
// threads of a block exchange a number, and the launch. A file of kernels includes this
// one, and defines functions that take a Problem.
#pragma once

#include "device.cuh"

namespace sbnref::laboratory {

#ifndef SBNREF_THREADS
#define SBNREF_THREADS 256
#endif
constexpr int kThreads = SBNREF_THREADS;  // per block; a power of two

// x and y are (N, C, S) with any strides, the same for both, and for dy and dx. Passed
// to kernels by value. What a function has no use for has no elements.
struct Problem {
    int64_t N, C, S;
    int64_t stride_n, stride_c, stride_s;  // in elements
    int64_t splits;  // blocks that share a channel, if the kernels want it
    double weight, eps;
    Array<const float> x;
    Array<float> y;
    Array<float> mean, var;   // (C,)
    Array<double> partials;   // (3, splits, C), what blocks leave for each other
    Array<double> payload;    // (3C + 2,), what this rank tells the others
    Array<unsigned> tickets;  // (C,), zero before and after

    // For the four stages.
    double divisor, k;               // D, 0 for max(W, 1); w / m, 0 on an empty rank
    Array<const double> total;       // the payloads of all ranks, summed
    Array<const float> gamma, beta;  // (C,)
    Array<double> saved;             // (4, C), by the forward pass for the backward one
    Array<const float> dy;
    Array<float> dx;
    Stream stream;

    __host__ __device__ int64_t count() const { return N * S; }  // per channel

    // Where element i of channel c is. A GPU divides integers in software, 32 bits
    // faster than 64: a channel has less than 2^32 elements.
    __device__ int64_t at(int64_t c, int64_t i) const {
        const auto position = static_cast<unsigned>(i), size = static_cast<unsigned>(S);
        return position / size * stride_n + c * stride_c + position % size * stride_s;
    }
};

// What another kernel wrote.
template <typename T>
__device__ T read(Array<T> array, int64_t i) {
    return load(Array<const T>{array.data, array.size}, i);
}

// The sum over the threads of a block, always added in the same order. Once in a
// kernel.
__device__ inline double sum_over_block(double value) {
    SHARED_ARRAY(double, of_warp, kThreads / kWarp);
    for (int distance = kWarp / 2; distance > 0; distance /= 2)
        value += __shfl_down_sync(~0u, value, distance);
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

// What one thread of the block computes, for all of them. Once in a kernel.
template <typename F>
__device__ Line once_per_block(const F& compute) {
    SHARED_ARRAY(Line, shared, 1);
    if (threadIdx.x == 0) shared[0] = compute();
    __syncthreads();
    return shared[0];
}

inline void launch(
    const char* name, void (*kernel)(Problem), int64_t blocks, const Problem& p) {
    Plan plan{};
    plan.tiles = blocks;
    plan.splits = 1;
    plan.threads = kThreads;
    sbnref::launch(name, kernel, plan, 0, p.stream, p);
}

}  // namespace sbnref::laboratory
