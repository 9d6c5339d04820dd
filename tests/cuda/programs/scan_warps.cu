#include "program.h"

constexpr int kSize = 256;

__device__ __forceinline__ int scan_of_warp(int v) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int d = 1; d < 32; d <<= 1) {
        const int other = __shfl_up_sync(~0u, v, d);
        if (lane >= d) v += other;
    }
    return v;
}

__global__ void scan(const int* x, int* y) {
    __shared__ int totals[kSize / 32];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int v = scan_of_warp(x[threadIdx.x]);
    if (lane == 31) totals[warp] = v;
    __syncthreads();
    if (warp == 0) {
        const int total = scan_of_warp(lane < kSize / 32 ? totals[lane] : 0);
        if (lane < kSize / 32) totals[lane] = total;
    }
    __syncthreads();
    if (warp > 0) v += totals[warp - 1];
    y[threadIdx.x] = v;
}

int main() {
    std::vector<int> h(kSize);
    for (int i = 0; i < kSize; ++i) h[i] = i % 11 - 3;
    int *x = on_gpu(h), *y = on_gpu<int>(kSize);
    scan<<<1, kSize>>>(x, y);
    const auto result = take(y, kSize);
    int total = 0;
    for (int i = 0; i < kSize; ++i) EXPECT(result[i] == (total += h[i]));
    CUDA(cudaFree(x));
}
