// The lanes of a warp add up by shuffles. The warps store their results in shared
// memory: first the sums, then the sums of squares.
#include "laboratory.cuh"

constexpr int kWarps = kThreads / kWarp;

// Return the index of element i of channel c in x, which is (N, C, S).
__device__ int at(int c, int i, int C, int S) { return (i / S * C + c) * S + i % S; }

__global__ void statistics(
    const float* x, float* mean, float* var, int count, int C, int S) {
    const int c = blockIdx.x;
    double sum = 0, square = 0;
    for (int i = threadIdx.x; i < count; i += kThreads) {
        const double value = x[at(c, i, C, S)];
        sum += value;
        square += value * value;
    }
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
        sum += __shfl_down_sync(~0u, sum, distance);
        square += __shfl_down_sync(~0u, square, distance);
    }
    __shared__ double of_warp[kWarps];
    if (threadIdx.x % kWarp == 0) {
        of_warp[threadIdx.x / kWarp] = sum;
        of_warp[threadIdx.x / kWarp + kWarps] = square;
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    double sums = 0, squares = 0;
    for (int w = 0; w < kWarps; ++w) {
        sums += of_warp[w];
        squares += of_warp[w + kWarps];
    }
    const double average = sums / count;
    mean[c] = average;
    var[c] = fmax(squares / count - average * average, 0.0);
}

void moments(const float* x, float* mean, float* var, int N, int C, int S) {
    statistics<<<C, kThreads>>>(x, mean, var, N * S, C, S);
}
