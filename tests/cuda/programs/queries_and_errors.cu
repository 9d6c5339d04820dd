#include <cstring>

#include "program.h"

__global__ void nothing() {}

int main() {
    int count = 0, device = -1, warp = 0, blocks = 0, grid = 0, threads = 0;
    cudaDeviceProp properties;
    size_t available, total;
    CUDA(cudaGetDeviceCount(&count));
    CUDA(cudaGetDevice(&device));
    CUDA(cudaGetDeviceProperties(&properties, device));
    CUDA(cudaDeviceGetAttribute(&warp, cudaDevAttrWarpSize, device));
    CUDA(cudaMemGetInfo(&available, &total));
    CUDA(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, nothing, 256, 0));
    CUDA(cudaOccupancyMaxPotentialBlockSize(&grid, &threads, nothing));
    EXPECT(count >= 1 && warp == 32 && properties.warpSize == 32 && properties.maxThreadsPerBlock == 1024);
    EXPECT(available <= total && blocks >= 1 && grid >= 1 && threads >= 32 && std::strlen(properties.name) > 0);

    nothing<<<1, 2000>>>();  // more threads than a block may have
    EXPECT(cudaPeekAtLastError() == cudaErrorInvalidConfiguration);
    EXPECT(cudaGetLastError() == cudaErrorInvalidConfiguration);
    EXPECT(cudaGetLastError() == cudaSuccess);
    EXPECT(std::strcmp(cudaGetErrorString(cudaErrorInvalidConfiguration), "invalid configuration argument") == 0);
    EXPECT(std::strcmp(cudaGetErrorName(cudaErrorInvalidValue), "cudaErrorInvalidValue") == 0);
    void* p = nullptr;
    EXPECT(cudaMalloc(&p, size_t{1} << 60) == cudaErrorMemoryAllocation);
    EXPECT(cudaSetDevice(99) == cudaErrorInvalidDevice);
    cudaGetLastError();
    nothing<<<1, 1>>>();
    CUDA(cudaGetLastError());
    CUDA(cudaDeviceSynchronize());
}
