// Rung 1, naive: the formula, word by word. One kernel computes the mean, one computes
// the variance, and one normalizes. Every channel has a block. The kernels read x three
// times.
#pragma once

#include "laboratory.cuh"

__global__ void naive_mean(Problem p) {
    const int64_t c = blockIdx.x;
    float sum = 0;
    for (int64_t i = threadIdx.x; i < p.count(); i += kThreads)
        sum += p.x[p.at(c, i)];
    const double total = sum_over_block(sum);
    if (threadIdx.x == 0) p.mean[c] = static_cast<float>(total / p.count());
}

__global__ void naive_variance(Problem p) {
    const int64_t c = blockIdx.x;
    const Line centered = once_per_block([&] { return Line{p.mean[c], 1, 0}; });
    float sum = 0;
    for (int64_t i = threadIdx.x; i < p.count(); i += kThreads) {
        const float deviation = centered(p.x[p.at(c, i)]);
        sum += deviation * deviation;
    }
    const double total = sum_over_block(sum);
    if (threadIdx.x == 0) p.var[c] = static_cast<float>(total / p.count());
}

// Return the line that normalizes a channel, from its statistics.
__device__ inline Line normalizing(const Problem& p, int64_t c) {
    return {p.mean[c], 1 / sqrtf(p.var[c] + static_cast<float>(p.eps)), 0};
}

__global__ void naive_normalize(Problem p) {
    const int64_t c = blockIdx.x;
    const Line line = once_per_block([&] { return normalizing(p, c); });
    for (int64_t i = threadIdx.x; i < p.count(); i += kThreads)
        p.y[p.at(c, i)] = line(p.x[p.at(c, i)]);
}

inline void naive(const Problem& p) {
    naive_mean<<<p.C, kThreads, 0, p.stream>>>(p);
    naive_variance<<<p.C, kThreads, 0, p.stream>>>(p);
    naive_normalize<<<p.C, kThreads, 0, p.stream>>>(p);
}
