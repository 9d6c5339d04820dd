// Solutions of the shipped tasks, with a block per row or channel.
#include <cuda_runtime.h>

constexpr int kThreads = 128;

// Return the sum over a block's threads to all of them.
template <typename T>
__device__ T block_sum(T value) {
    __shared__ T part[kThreads];
    __syncthreads();  // others may still read an earlier sum
    part[threadIdx.x] = value;
    for (int half = kThreads / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) part[threadIdx.x] += part[threadIdx.x + half];
    }
    __syncthreads();
    return part[0];
}

__global__ void sum_kernel(const float* x, float* y, int n) {
    double mine = 0;
    for (int i = threadIdx.x; i < n; i += kThreads) mine += x[i];
    mine = block_sum(mine);
    if (threadIdx.x == 0) *y = mine;
}
void sum(const float* x, float* y, int n) { sum_kernel<<<1, kThreads>>>(x, y, n); }

__global__ void transpose_kernel(const float* x, float* y, int rows, int columns) {
    __shared__ float tile[16][17];
    const int row = blockIdx.y * 16 + threadIdx.y, column = blockIdx.x * 16 + threadIdx.x;
    if (row < rows && column < columns) tile[threadIdx.y][threadIdx.x] = x[row * columns + column];
    __syncthreads();
    const int to_row = blockIdx.x * 16 + threadIdx.y, to_column = blockIdx.y * 16 + threadIdx.x;
    if (to_row < columns && to_column < rows) y[to_row * rows + to_column] = tile[threadIdx.x][threadIdx.y];
}
void transpose(const float* x, float* y, int rows, int columns) {
    transpose_kernel<<<dim3((columns + 15) / 16, (rows + 15) / 16), dim3(16, 16)>>>(x, y, rows, columns);
}

__global__ void softmax_kernel(const float* x, float* y, int columns) {
    x += blockIdx.x * columns, y += blockIdx.x * columns;
    float most = -INFINITY, sum = 0;
    for (int i = 0; i < columns; ++i) most = fmaxf(most, x[i]);
    for (int i = threadIdx.x; i < columns; i += kThreads) sum += expf(x[i] - most);
    sum = block_sum(sum);
    for (int i = threadIdx.x; i < columns; i += kThreads) y[i] = expf(x[i] - most) / sum;
}
void softmax(const float* x, float* y, int rows, int columns) { softmax_kernel<<<rows, kThreads>>>(x, y, columns); }

__global__ void scan_kernel(const float* x, float* y, int n) {
    double before = 0;
    for (int begin = 0; begin < n; begin += kThreads) {
        __shared__ double part[kThreads];
        const int i = begin + threadIdx.x;
        part[threadIdx.x] = i < n ? x[i] : 0;
        for (int d = 1; d < kThreads; d *= 2) {
            __syncthreads();
            const double left = threadIdx.x >= d ? part[threadIdx.x - d] : 0;
            __syncthreads();
            part[threadIdx.x] += left;
        }
        __syncthreads();
        if (i < n) y[i] = before + part[threadIdx.x];
        before += part[kThreads - 1];
        __syncthreads();
    }
}
void scan(const float* x, float* y, int n) {
    if (n > 0) scan_kernel<<<1, kThreads>>>(x, y, n);
}

// Call f(i) for this thread's elements of the block's channel.
template <typename F>
__device__ void each(int N, int C, int S, const F& f) {
    for (int k = threadIdx.x; k < N * S; k += kThreads) f((k / S * C + blockIdx.x) * S + k % S);
}

struct Moments {
    double mean, var;
};
__device__ Moments moments(const float* x, int N, int C, int S) {
    double sum = 0, squares = 0;
    each(N, C, S, [&](int i) { sum += x[i]; });
    const int count = max(N * S, 1);  // an empty rank's moments are 0
    const double mean = block_sum(sum) / count;
    each(N, C, S, [&](int i) { squares += (x[i] - mean) * (x[i] - mean); });
    return {mean, block_sum(squares) / count};
}

__global__ void moments_kernel(const float* x, float* mean, float* var, int N, int C, int S) {
    const Moments m = moments(x, N, C, S);
    if (threadIdx.x == 0) mean[blockIdx.x] = m.mean, var[blockIdx.x] = m.var;
}
void moments(const float* x, float* mean, float* var, int N, int C, int S) {
    moments_kernel<<<C, kThreads>>>(x, mean, var, N, C, S);
}

__global__ void batch_norm_kernel(const float* x, float* y, int N, int C, int S, float eps) {
    const Moments m = moments(x, N, C, S);
    each(N, C, S, [&](int i) { y[i] = (x[i] - m.mean) / sqrt(m.var + eps); });
}
void batch_norm(const float* x, float* y, int N, int C, int S, float eps) {
    batch_norm_kernel<<<C, kThreads>>>(x, y, N, C, S, eps);
}

__global__ void forward_stats_kernel(const float* x, double* payload, int N, int C, int S, double w) {
    const Moments m = moments(x, N, C, S);
    const int c = blockIdx.x;
    if (threadIdx.x != 0) return;
    payload[c] = w * m.mean, payload[C + c] = w * m.var, payload[2 * C + c] = w * m.mean * m.mean;
    if (c == 0) payload[3 * C] = w, payload[3 * C + 1] = N * S;
}
void forward_stats(const float* x, double* payload, int N, int C, int S, double weight) {
    forward_stats_kernel<<<C, kThreads>>>(x, payload, N, C, S, weight);
}

__global__ void forward_apply_kernel(
    const float* x, const double* total, const float* gamma, const float* beta, float* y, double* saved, int N, int C,
    int S, double D, double eps) {
    const int c = blockIdx.x;
    const double weights = total[3 * C], d = D > 0 ? D : weights > 1 ? weights : 1, mean = total[c] / d;
    const double between = total[2 * C + c] - mean * (2 * total[c] - mean * weights);
    const double var = (total[C + c] + (between < 0x1p-50 * total[2 * C + c] ? 0 : between)) / d;
    const double invstd = 1 / sqrt(var + eps);
    each(N, C, S, [&](int i) { y[i] = (x[i] - mean) * invstd * gamma[c] + beta[c]; });
    if (threadIdx.x != 0) return;
    saved[c] = mean, saved[C + c] = invstd, saved[2 * C + c] = mean * invstd * (1 - weights / d),
    saved[3 * C + c] = 1 / d;
}
void forward_apply(
    const float* x, const double* total, const float* gamma, const float* beta, float* y, double* saved, int N, int C,
    int S, double D, double eps) {
    forward_apply_kernel<<<C, kThreads>>>(x, total, gamma, beta, y, saved, N, C, S, D, eps);
}

__global__ void backward_stats_kernel(
    const float* dy, const float* x, const double* saved, double* payload, int N, int C, int S) {
    const int c = blockIdx.x;
    double g = 0, gx = 0;
    each(N, C, S, [&](int i) { g += dy[i], gx += dy[i] * (x[i] - saved[c]) * saved[C + c]; });
    g = block_sum(g), gx = block_sum(gx);
    if (threadIdx.x == 0) payload[c] = g, payload[C + c] = gx;
}
void backward_stats(const float* dy, const float* x, const double* saved, double* payload, int N, int C, int S) {
    backward_stats_kernel<<<C, kThreads>>>(dy, x, saved, payload, N, C, S);
}

__global__ void backward_apply_kernel(
    const float* dy, const float* x, const double* total, const double* saved, const float* gamma, float* dx, int N,
    int C, int S, double k) {
    const int c = blockIdx.x;
    const double invstd = saved[C + c], element = k * saved[3 * C + c], a = total[c], b = total[C + c];
    each(N, C, S, [&](int i) {
        const double xhat = (x[i] - saved[c]) * invstd;
        dx[i] = gamma[c] * invstd * (dy[i] - element * (a + xhat * b - saved[2 * C + c] * b));
    });
}
void backward_apply(
    const float* dy, const float* x, const double* total, const double* saved, const float* gamma, float* dx, int N,
    int C, int S, double k) {
    backward_apply_kernel<<<C, kThreads>>>(dy, x, total, saved, gamma, dx, N, C, S, k);
}
