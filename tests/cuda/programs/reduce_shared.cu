#include "program.h"

constexpr int kThreads = 128;

__global__ void reduce(const float* x, float* sums, int n) {
    __shared__ float s[kThreads];
    const unsigned t = threadIdx.x;
    const int i = blockIdx.x * blockDim.x + t;
    s[t] = i < n ? x[i] : 0;
    __syncthreads();
    for (unsigned d = blockDim.x / 2; d > 0; d >>= 1) {
        if (t < d) s[t] += s[t + d];
        __syncthreads();
    }
    if (t == 0) sums[blockIdx.x] = s[0];
}

int main() {
    constexpr int n = 1000, blocks = (n + kThreads - 1) / kThreads;
    const auto h = numbers(n);
    float *x = on_gpu(h), *sums = on_gpu<float>(blocks);
    reduce<<<blocks, kThreads>>>(x, sums, n);
    EXPECT(sum(take(sums, blocks)) == sum(h));
    CUDA(cudaFree(x));
}
