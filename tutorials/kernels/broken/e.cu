// One pass gives both sums: the variance is the mean of the squares minus the square of
// the mean.
#include "laboratory.cuh"

using Number = float;

// Return the index of element i of channel c in x, which is (N, C, S).
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
