#include "program.h"

// The block size is not a multiple of 32, and threads beyond the end return before the barrier.
__global__ void shifted(const int* x, int* y, int n) {
    __shared__ int s[72];
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    s[threadIdx.x] = x[i];
    __syncthreads();
    y[i] = threadIdx.x > 0 ? s[threadIdx.x - 1] : -1;
}

__global__ void barriers(const int* x, int* out) {
    const int v = x[threadIdx.x];
    const int count = __syncthreads_count(v % 3 == 0), any = __syncthreads_or(v == 49), all = __syncthreads_and(v < 49);
    int sum = v;
    const unsigned mask = threadIdx.x < 32 ? ~0u : (1u << (blockDim.x - 32)) - 1;
    for (int d = 16; d > 0; d /= 2) {
        const int other = __shfl_down_sync(mask, sum, d);
        if ((threadIdx.x & 31) + d < (threadIdx.x < 32 ? 32 : blockDim.x - 32)) sum += other;
    }
    if (threadIdx.x % 32 == 0) out[3 + threadIdx.x / 32] = sum;
    if (threadIdx.x == 0) out[0] = count, out[1] = any, out[2] = all;
}

int main() {
    constexpr int n = 200;
    std::vector<int> h(n);
    for (int i = 0; i < n; ++i) h[i] = i;
    int *x = on_gpu(h), *y = on_gpu<int>(n), *out = on_gpu<int>(5);
    shifted<<<(n + 71) / 72, 72>>>(x, y, n);
    const auto result = take(y, n);
    for (int i = 0; i < n; ++i) EXPECT(result[i] == (i % 72 ? i - 1 : -1));
    barriers<<<1, 50>>>(x, out);
    EXPECT((take(out, 5) == std::vector<int>{17, 1, 0, 31 * 16, 50 * 49 / 2 - 31 * 16}));
    CUDA(cudaFree(x));
}
