// Both sums in one pass: the variance is the mean of the squares less the square of the
// mean.
#include <cuda_runtime.h>

constexpr int kThreads = 256;

using Number = float;

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
    Number sum = 0, square = 0;
    for (int i = threadIdx.x; i < count; i += kThreads) {
        const Number value = x[at(c, i, C, S)];
        sum += value;
        square += value * value;
    }
    const double sums = sum_over_block(sum);
    __syncthreads();
    const double squares = sum_over_block(square);
    if (threadIdx.x != 0) return;
    const double average = sums / count;
    mean[c] = average;
    var[c] = fmax(squares / count - average * average, 0.0);
}

void moments(const float* x, float* mean, float* var, int N, int C, int S) {
    statistics<<<C, kThreads>>>(x, mean, var, N * S, C, S);
}
