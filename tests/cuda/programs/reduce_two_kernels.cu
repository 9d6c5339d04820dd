#include "program.h"

template <unsigned Size>
__device__ void tree(volatile float* s, unsigned t) {
    if constexpr (Size > 1) {
        if (t < Size / 2) s[t] = s[t] + s[t + Size / 2];
        __syncthreads();
        tree<Size / 2>(s, t);
    }
}

template <typename T, unsigned Size>
__global__ void partial(const T* x, T* sums, size_t n) {
    __shared__ T s[Size];
    T mine = 0;
    for (size_t i = blockIdx.x * Size + threadIdx.x; i < n; i += gridDim.x * Size) mine += x[i];
    s[threadIdx.x] = mine;
    __syncthreads();
    tree<Size>(s, threadIdx.x);
    if (threadIdx.x == 0) sums[blockIdx.x] = s[0];
}

int main() {
    constexpr int n = 3000, blocks = 8;
    const auto h = numbers(n);
    float *x = on_gpu(h), *sums = on_gpu<float>(blocks), *total = on_gpu<float>(1);
    partial<float, 64><<<blocks, 64>>>(x, sums, n);
    partial<float, 32><<<1, 32>>>(sums, total, blocks);
    EXPECT(take(total, 1)[0] == sum(h));
    CUDA(cudaFree(x));
    CUDA(cudaFree(sums));
}
