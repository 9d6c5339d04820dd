// Step 2, one pass: compute both sums of a channel at once. The sums are of deviations
// from the channel's first element, which is near the mean.
#include "laboratory.cuh"

// Return the index of element i of channel c in x and y, which are (N, C, S).
__device__ int at(int c, int i, int C, int S) { return (i / S * C + c) * S + i % S; }

// From the sums, compute the statistics. The sums are of all deviations from the
// channel's first element and of their squares.
__device__ void store_statistics(
    float* mean, float* var, int c, float first, double sum, double squares,
    int count) {
    const double about = sum / count;
    mean[c] = first + about;
    var[c] = fmax(squares / count - about * about, 0.0);
}

__global__ void statistics(
    const float* x, float* mean, float* var, int count, int C, int S) {
    const int c = blockIdx.x;
    const float first = x[at(c, 0, C, S)];
    float sum = 0, squares = 0;
    for (int i = threadIdx.x; i < count; i += kThreads) {
        const float deviation = x[at(c, i, C, S)] - first;
        sum += deviation;
        squares += deviation * deviation;
    }
    const double all = sum_over_block(sum);
    __syncthreads();
    const double all_squares = sum_over_block(squares);
    if (threadIdx.x == 0)
        store_statistics(mean, var, c, first, all, all_squares, count);
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
