#include "program.h"

__inline__ __device__ float warp_sum(float v) {
    for (int offset = warpSize / 2; offset > 0; offset /= 2) v += __shfl_down_sync(0xffffffff, v, offset);
    return v;
}

__global__ void reduce(const float* x, float* sums, int n) {
    __shared__ float of_warp[32];
    const int lane = threadIdx.x % warpSize, warp = threadIdx.x / warpSize;
    float v = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += blockDim.x * gridDim.x) v += x[i];
    v = warp_sum(v);
    if (lane == 0) of_warp[warp] = v;
    __syncthreads();
    v = threadIdx.x < blockDim.x / warpSize ? of_warp[lane] : 0;
    if (warp == 0) v = warp_sum(v);
    if (threadIdx.x == 0) sums[blockIdx.x] = v;
}

int main() {
    constexpr int n = 1777;
    const auto h = numbers(n);
    float *x = on_gpu(h), *sums = on_gpu<float>(3);
    reduce<<<3, 256>>>(x, sums, n);
    EXPECT(sum(take(sums, 3)) == sum(h));
    CUDA(cudaFree(x));
}
