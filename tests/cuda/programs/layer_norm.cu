#include "program.h"

template <int Threads>
__device__ float block_sum(float v) {
    static_assert(Threads % 32 == 0, "whole warps");
    __shared__ float s[Threads / 32];
    for (int d = 16; d > 0; d /= 2) v += __shfl_xor_sync(~0u, v, d);
    __syncthreads();  // the last sum may still be read
    if (threadIdx.x % 32 == 0) s[threadIdx.x / 32] = v;
    __syncthreads();
    v = 0;
    for (int w = 0; w < Threads / 32; ++w) v += s[w];
    return v;
}

template <int Threads>
__global__ void layer_norm(const float* x, const float* weight, const float* bias, float* y, int n, float eps) {
    x += blockIdx.x * n;
    y += blockIdx.x * n;
    float sum = 0, squares = 0;
    for (int i = threadIdx.x; i < n; i += Threads) sum += x[i];
    const float mean = block_sum<Threads>(sum) / n;
    for (int i = threadIdx.x; i < n; i += Threads) squares += (x[i] - mean) * (x[i] - mean);
    const float invstd = rsqrtf(block_sum<Threads>(squares) / n + eps);
    for (int i = threadIdx.x; i < n; i += Threads) y[i] = (x[i] - mean) * invstd * weight[i] + bias[i];
}

int main() {
    constexpr int rows = 4, n = 150;
    const auto h = numbers(rows * n), w = numbers(n);
    float *x = on_gpu(h), *weight = on_gpu(w), *bias = zeros_on_gpu<float>(n), *y = on_gpu<float>(rows * n);
    layer_norm<96><<<rows, 96>>>(x, weight, bias, y, n, 1e-5f);
    const auto result = take(y, rows * n);
    for (int row = 0; row < rows; ++row) {
        double mean = 0, var = 0;
        for (int i = 0; i < n; ++i) mean += h[row * n + i] / n;
        for (int i = 0; i < n; ++i) var += (h[row * n + i] - mean) * (h[row * n + i] - mean) / n;
        for (int i = 0; i < n; ++i)
            EXPECT(close(result[row * n + i], (h[row * n + i] - mean) / sqrt(var + 1e-5) * w[i]));
    }
    for (float* p : {x, weight, bias}) CUDA(cudaFree(p));
}
