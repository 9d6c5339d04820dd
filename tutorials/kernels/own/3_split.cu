// Step 3, split: several blocks share a channel. Each block stores its sums in memory,
// and a third kernel adds them up in a fixed order.
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

// Where a block leaves its first or second sum: channels are side by side.
__device__ int partial(int which, int split, int c, int splits, int C) {
    return (which * splits + split) * C + c;
}

__global__ void statistics(
    const float* x, double* partials, int splits, int count, int C, int S) {
    const int c = blockIdx.x / splits, split = blockIdx.x % splits;
    const float first = x[at(c, 0, C, S)];
    float sum = 0, squares = 0;
    for (int i = split * kThreads + threadIdx.x; i < count; i += splits * kThreads) {
        const float deviation = x[at(c, i, C, S)] - first;
        sum += deviation;
        squares += deviation * deviation;
    }
    const double all = sum_over_block(sum);
    __syncthreads();
    const double all_squares = sum_over_block(squares);
    if (threadIdx.x != 0) return;
    partials[partial(0, split, c, splits, C)] = all;
    partials[partial(1, split, c, splits, C)] = all_squares;
}

__global__ void add_up(
    const float* x, const double* partials, float* mean, float* var, int splits,
    int count, int C, int S) {
    const int c = blockIdx.x * kThreads + threadIdx.x;  // a thread for every channel
    if (c >= C) return;
    double sum = 0, squares = 0;
    for (int s = 0; s < splits; ++s) {
        sum += partials[partial(0, s, c, splits, C)];
        squares += partials[partial(1, s, c, splits, C)];
    }
    store_statistics(mean, var, c, x[at(c, 0, C, S)], sum, squares, count);
}

__global__ void normalize(
    const float* x, float* y, const float* mean, const float* var, int splits,
    int count, int C, int S, float eps) {
    const int c = blockIdx.x / splits, split = blockIdx.x % splits;
    const float center = mean[c], scale = 1 / sqrtf(var[c] + eps);
    for (int i = split * kThreads + threadIdx.x; i < count; i += splits * kThreads)
        y[at(c, i, C, S)] = (x[at(c, i, C, S)] - center) * scale;
}

void batch_norm(const float* x, float* y, int N, int C, int S, float eps) {
    const int count = N * S, most = (count + kThreads - 1) / kThreads;
    const int splits = min((132 + C - 1) / C, most);  // an H100 has 132 multiprocessors
    double* partials;                                 // (2, splits, C)
    float *mean, *var;
    cudaMalloc(&partials, 2 * splits * C * sizeof(double));
    cudaMalloc(&mean, C * sizeof(float));
    cudaMalloc(&var, C * sizeof(float));
    statistics<<<C * splits, kThreads>>>(x, partials, splits, count, C, S);
    add_up<<<(C + kThreads - 1) / kThreads, kThreads>>>(
        x, partials, mean, var, splits, count, C, S);
    normalize<<<C * splits, kThreads>>>(x, y, mean, var, splits, count, C, S, eps);
    cudaFree(partials);
    cudaFree(mean);
    cudaFree(var);
}
