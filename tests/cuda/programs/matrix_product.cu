#include "program.h"

constexpr int kTile = 8;

// C = AB, for n x n matrices; n need not be a multiple of the tile.
__global__ void product(const float* a, const float* b, float* c, int n) {
    __shared__ float as[kTile][kTile], bs[kTile][kTile];
    const int row = blockIdx.y * kTile + threadIdx.y, column = blockIdx.x * kTile + threadIdx.x;
    float sum = 0;
    for (int t = 0; t < n; t += kTile) {
        as[threadIdx.y][threadIdx.x] = row < n && t + threadIdx.x < n ? a[row * n + t + threadIdx.x] : 0;
        bs[threadIdx.y][threadIdx.x] = column < n && t + threadIdx.y < n ? b[(t + threadIdx.y) * n + column] : 0.f;
        __syncthreads();
#pragma unroll
        for (int k = 0; k < kTile; ++k) sum += as[threadIdx.y][k] * bs[k][threadIdx.x];
        __syncthreads();
    }
    if (row < n && column < n) c[row * n + column] = sum;
}

int main() {
    constexpr int n = 21;
    const auto h = numbers(n * n);
    float *a = on_gpu(h), *b = on_gpu(h), *c = on_gpu<float>(n * n);
    const dim3 block(kTile, kTile), grid((n + kTile - 1) / kTile, (n + kTile - 1) / kTile);
    product<<<grid, block>>>(a, b, c, n);
    const auto result = take(c, n * n);
    for (int i = 0; i < n; ++i)
        for (int j = 0; j < n; ++j) {
            float expected = 0;
            for (int k = 0; k < n; ++k) expected += h[i * n + k] * h[k * n + j];
            EXPECT(result[i * n + j] == expected);
        }
    CUDA(cudaFree(a));
    CUDA(cudaFree(b));
}
