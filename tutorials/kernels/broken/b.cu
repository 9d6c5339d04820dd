// Each thread takes every 256th element, in as many rounds as the channel needs.
#include "laboratory.cuh"

// Return the index of element i of channel c in x, which is (N, C, S).
__device__ int at(int c, int i, int C, int S) { return (i / S * C + c) * S + i % S; }

__global__ void statistics(
    const float* x, float* mean, float* var, int count, int C, int S) {
    const int c = blockIdx.x;
    const int rounds = (count + kThreads - 1) / kThreads;
    double sum = 0;
    for (int round = 0; round < rounds; ++round) {
        const int i = round * kThreads + threadIdx.x;
        sum += x[at(c, i, C, S)];
    }
    const double average = sum_over_block(sum) / count;
    __syncthreads();
    double square = 0;
    for (int round = 0; round < rounds; ++round) {
        const int i = round * kThreads + threadIdx.x;
        if (i >= count) break;
        const double deviation = x[at(c, i, C, S)] - average;
        square += deviation * deviation;
    }
    const double all = sum_over_block(square);
    if (threadIdx.x != 0) return;
    mean[c] = average;
    var[c] = all / count;
}

void moments(const float* x, float* mean, float* var, int N, int C, int S) {
    statistics<<<C, kThreads>>>(x, mean, var, N * S, C, S);
}
