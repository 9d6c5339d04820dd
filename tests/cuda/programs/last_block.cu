#include "program.h"

__device__ unsigned finished = 0;

__global__ void reduce(const float* x, float* partial, float* total, int n) {
    __shared__ float s[64];
    __shared__ bool is_last;
    float v = 0;
    for (int i = blockIdx.x * 64 + threadIdx.x; i < n; i += gridDim.x * 64) v += x[i];
    s[threadIdx.x] = v;
    __syncthreads();
    for (int d = 32; d > 0; d /= 2) {
        if (threadIdx.x < d) s[threadIdx.x] += s[threadIdx.x + d];
        __syncthreads();
    }
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = s[0];
        __threadfence();
        is_last = atomicInc(&finished, gridDim.x - 1) == gridDim.x - 1;
    }
    __syncthreads();
    if (is_last && threadIdx.x == 0) {
        __threadfence();
        float all = 0;
        for (unsigned b = 0; b < gridDim.x; ++b) all += partial[b];
        *total = all;
    }
}

int main() {
    constexpr int n = 1000;
    const auto h = numbers(n);
    float *x = on_gpu(h), *partial = on_gpu<float>(5), *total = on_gpu<float>(1);
    for (int again = 0; again < 2; ++again) reduce<<<5, 64>>>(x, partial, total, n);  // the counter is back at zero
    EXPECT(take(total, 1)[0] == sum(h));
    CUDA(cudaFree(x));
    CUDA(cudaFree(partial));
}
