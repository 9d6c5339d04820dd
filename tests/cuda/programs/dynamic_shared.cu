#include "program.h"

extern __shared__ int of_file[];

__global__ void reverse(int* x, int n) {
    of_file[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = of_file[n - 1 - threadIdx.x];
}

// Two arrays in one.
__global__ void two(const float* x, float* y, int n) {
    extern __shared__ __align__(16) unsigned char raw[];
    float* values = reinterpret_cast<float*>(raw);
    short* places = reinterpret_cast<short*>(&values[n]);
    const int t = threadIdx.x;
    values[t] = x[t];
    places[t] = static_cast<short>((t * 5 + 3) % n);
    __syncthreads();
    y[places[t]] = values[t];
}

template <typename T>
__global__ void doubled(T* x) {
    extern __shared__ double2 memory[];
    T* const s = reinterpret_cast<T*>(memory);
    s[threadIdx.x ^ 1] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = 2 * s[threadIdx.x];
}

int main() {
    constexpr int n = 64;
    std::vector<int> h(n);
    for (int i = 0; i < n; ++i) h[i] = i;
    int* x = on_gpu(h);
    CUDA(cudaFuncSetAttribute(reverse, cudaFuncAttributeMaxDynamicSharedMemorySize, 100 * 1024));
    reverse<<<1, n, n * sizeof(int)>>>(x, n);
    doubled<<<1, n, n * sizeof(int)>>>(x);
    const auto reversed = take(x, n);
    for (int i = 0; i < n; ++i) EXPECT(reversed[i] == 2 * (n - 1 - (i ^ 1)));

    const auto f = numbers(n);
    float *u = on_gpu(f), *v = on_gpu<float>(n);
    two<<<1, n, n * (sizeof(float) + sizeof(short)), cudaStreamPerThread>>>(u, v, n);
    const auto permuted = take(v, n);
    for (int i = 0; i < n; ++i) EXPECT(permuted[(i * 5 + 3) % n] == f[i]);
    CUDA(cudaFree(u));
}
