// Each thread takes every 256th element, in as many rounds as the channel needs.
#include <cuda_runtime.h>

constexpr int kThreads = 256;

// The sum over the threads of a block, for all of them.
__device__ double sum_over_block(double value) {
    __shared__ double of_warp[kThreads / 32];
    for (int distance = 16; distance > 0; distance /= 2)
        value += __shfl_down_sync(~0u, value, distance);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
    __syncthreads();
    double sum = 0;
    for (int w = 0; w < kThreads / 32; ++w) sum += of_warp[w];
    return sum;
}

// Where element i of channel c is in x, which is (N, C, S).
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
