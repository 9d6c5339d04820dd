// The threads of a block add up in a tree: in each step half of them take what the
// other half has.
#include <cuda_runtime.h>

constexpr int kThreads = 256;

// Where element i of channel c is in x and y, which are (N, C, S).
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

__global__ void normalize(
    const float* x, float* y, const float* mean, const float* var, int count, int C,
    int S, float eps) {
    const int c = blockIdx.x;
    const float center = mean[c], scale = 1 / sqrtf(var[c] + eps);
    for (int i = threadIdx.x; i < count; i += kThreads)
        y[at(c, i, C, S)] = (x[at(c, i, C, S)] - center) * scale;
}

void batch_norm(const float* x, float* y, int N, int C, int S, float eps) {
    float *mean, *var;
    cudaMalloc(&mean, C * sizeof(float));
    cudaMalloc(&var, C * sizeof(float));
    statistics<<<C, kThreads>>>(x, mean, var, N * S, C, S);
    normalize<<<C, kThreads>>>(x, y, mean, var, N * S, C, S, eps);
    cudaFree(mean);
    cudaFree(var);
}
