#include "program.h"

constexpr int kTile = 16, kRows = 4;

__global__ void naive(const float* x, float* y, int width, int height) {
    const int column = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y * blockDim.y + threadIdx.y;
    if (column < width && row < height) y[column * height + row] = x[row * width + column];
}

__global__ void tiled(const float* x, float* y, int width, int height) {
    __shared__ float tile[kTile][kTile + 1];  // a column apart, so that columns lie in different banks
    int column = blockIdx.x * kTile + threadIdx.x, row = blockIdx.y * kTile + threadIdx.y;
    for (int k = 0; k < kTile; k += kRows)
        if (column < width && row + k < height) tile[threadIdx.y + k][threadIdx.x] = x[(row + k) * width + column];
    __syncthreads();
    column = blockIdx.y * kTile + threadIdx.x;
    row = blockIdx.x * kTile + threadIdx.y;
    for (int k = 0; k < kTile; k += kRows)
        if (column < height && row + k < width) y[(row + k) * height + column] = tile[threadIdx.x][threadIdx.y + k];
}

int main() {
    constexpr int width = 40, height = 25;
    const auto h = numbers(width * height);
    float* x = on_gpu(h);
    const dim3 grid((width + kTile - 1) / kTile, (height + kTile - 1) / kTile, 1);
    for (auto kernel : {naive, tiled}) {
        float* y = on_gpu<float>(width * height);
        kernel<<<grid, dim3(kTile, kernel == naive ? kTile : kRows)>>>(x, y, width, height);
        const auto result = take(y, width * height);
        for (int i = 0; i < width * height; ++i) EXPECT(result[i % width * height + i / width] == h[i]);
    }
    CUDA(cudaFree(x));
}
