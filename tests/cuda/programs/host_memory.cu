// Kernels access pinned and registered memory of the host; the host is called back.
#include "program.h"

__global__ void twice(const int* x, int* y, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) y[i] = 2 * x[i];
}

void CUDART_CB count(cudaStream_t, cudaError_t status, void* calls) {
    *static_cast<int*>(calls) += status == cudaSuccess;
}

int main() {
    constexpr int n = 200;
    int *x, *y, *of_gpu, calls = 0;
    CUDA(cudaHostAlloc(&x, n * sizeof(int), cudaHostAllocMapped));
    for (int i = 0; i < n; ++i) x[i] = i;
    CUDA(cudaHostGetDevicePointer(&of_gpu, x, 0));
    y = static_cast<int*>(std::calloc(n, sizeof(int)));
    CUDA(cudaHostRegister(y, n * sizeof(int), cudaHostRegisterMapped));
    twice<<<2, 128>>>(of_gpu, y, n);
    CUDA(cudaStreamAddCallback(nullptr, count, &calls, 0));
    CUDA(cudaDeviceSynchronize());
    EXPECT(calls == 1);
    for (int i = 0; i < n; ++i) EXPECT(y[i] == 2 * i);
    CUDA(cudaHostUnregister(y));
    EXPECT(cudaHostUnregister(y) != cudaSuccess);
    std::free(y);
    CUDA(cudaFreeHost(x));
}
