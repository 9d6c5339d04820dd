// The threads of a block add up in a tree: in each step, half of the threads add the
// numbers of the other half.
#include "laboratory.cuh"

// Return the index of element i of channel c in x, which is (N, C, S).
__device__ int at(int c, int i, int C, int S) { return (i / S * C + c) * S + i % S; }

__global__ void statistics(
    const float* x, float* mean, float* var, int count, int C, int S) {
    const int c = blockIdx.x;
    const unsigned t = threadIdx.x;
    double sum = 0, square = 0;
    for (int i = t; i < count; i += kThreads) {
        const double value = x[at(c, i, C, S)];
        sum += value;
        square += value * value;
    }
    __shared__ double sums[kThreads];
    __shared__ double squares[kThreads];
    sums[t] = sum;
    squares[t] = square;
    __syncthreads();
    for (unsigned half = kThreads / 2; half > 0; half /= 2) {
        if (t < half) {
            sums[t] += sums[t + half];
            squares[t] += squares[t + half];
        }
    }
    if (t != 0) return;
    const double average = sums[0] / count;
    mean[c] = average;
    var[c] = fmax(squares[0] / count - average * average, 0.0);
}

void moments(const float* x, float* mean, float* var, int N, int C, int S) {
    statistics<<<C, kThreads>>>(x, mean, var, N * S, C, S);
}
