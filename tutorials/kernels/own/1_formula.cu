// Step 1, the formula: a block reads its channel for the mean and again for the
// variance. A second kernel reads it once more to normalize.
#include "laboratory.cuh"

// Return the index of element i of channel c in x and y, which are (N, C, S).
__device__ int at(int c, int i, int C, int S) { return (i / S * C + c) * S + i % S; }

__global__ void statistics(
    const float* x, float* mean, float* var, int count, int C, int S) {
    const int c = blockIdx.x;  // every channel has a block
    float sum = 0;
    for (int i = threadIdx.x; i < count; i += kThreads) sum += x[at(c, i, C, S)];
    const float average = sum_over_block(sum) / count;
    __syncthreads();  // before the next sum uses the same shared memory
    float squares = 0;
    for (int i = threadIdx.x; i < count; i += kThreads) {
        const float deviation = x[at(c, i, C, S)] - average;
        squares += deviation * deviation;
    }
    const double all = sum_over_block(squares);
    if (threadIdx.x != 0) return;
    mean[c] = average;
    var[c] = all / count;
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
