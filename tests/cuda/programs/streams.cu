#include "program.h"

__global__ void increment(int* x, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) ++x[i];
}

int main() {
    constexpr int n = 300;
    cudaStream_t streams[2];
    cudaEvent_t start, stop;
    int *x[2], *pinned;
    CUDA(cudaMallocHost(&pinned, 2 * n * sizeof(int)));
    CUDA(cudaEventCreate(&start));
    CUDA(cudaEventCreate(&stop));
    for (int i = 0; i < 2 * n; ++i) pinned[i] = i;
    CUDA(cudaEventRecord(start));
    for (int s = 0; s < 2; ++s) {
        CUDA(cudaStreamCreate(&streams[s]));
        CUDA(cudaMalloc((void**)&x[s], n * sizeof(int)));
        CUDA(cudaMemcpyAsync(x[s], pinned + s * n, n * sizeof(int), cudaMemcpyHostToDevice, streams[s]));
        increment<<<(n + 127) / 128, 128, 0, streams[s]>>>(x[s], n);
        CUDA(cudaMemcpyAsync(pinned + s * n, x[s], n * sizeof(int), cudaMemcpyDeviceToHost, streams[s]));
    }
    for (cudaStream_t s : streams) CUDA(cudaStreamSynchronize(s));
    CUDA(cudaEventRecord(stop));
    CUDA(cudaEventSynchronize(stop));
    float ms = -1;
    CUDA(cudaEventElapsedTime(&ms, start, stop));
    EXPECT(ms >= 0);
    for (int i = 0; i < 2 * n; ++i) EXPECT(pinned[i] == i + 1);
    for (int s = 0; s < 2; ++s) {
        CUDA(cudaFree(x[s]));
        CUDA(cudaStreamDestroy(streams[s]));
    }
    CUDA(cudaEventDestroy(start));
    CUDA(cudaEventDestroy(stop));
    CUDA(cudaFreeHost(pinned));
}
