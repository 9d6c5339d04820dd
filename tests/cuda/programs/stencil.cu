#include "program.h"

#define RADIUS 3
#define BLOCK 64

__global__ void stencil_1d(const float* in, float* out, int n) {
    __shared__ float s[BLOCK + 2 * RADIUS];
    const int g = blockIdx.x * blockDim.x + threadIdx.x, l = threadIdx.x + RADIUS;
    const auto load = [&](int i) { return i >= 0 && i < n ? in[i] : 0.0f; };
    s[l] = load(g);
    if (threadIdx.x < RADIUS) {
        s[l - RADIUS] = load(g - RADIUS);
        s[l + BLOCK] = load(g + BLOCK);
    }
    __syncthreads();
    float sum = 0;
    for (int offset = -RADIUS; offset <= RADIUS; offset++) sum += s[l + offset];
    if (g < n) out[g] = sum;
}

__global__ void stencil_2d(const float (*in)[33], float (*out)[33], int height) {
    __shared__ float s[10][10];
    const int x = blockIdx.x * 8 + threadIdx.x - 1, y = blockIdx.y * 8 + threadIdx.y - 1;
    const bool inside = x >= 0 && x < 33 && y >= 0 && y < height;
    s[threadIdx.y][threadIdx.x] = inside ? in[y][x] : 0;
    __syncthreads();
    const int i = threadIdx.y, j = threadIdx.x;
    if (inside && i > 0 && i < 9 && j > 0 && j < 9)
        out[y][x] = s[i - 1][j] + s[i + 1][j] + s[i][j - 1] + s[i][j + 1] - 4 * s[i][j];
}

int main() {
    constexpr int n = 33 * 20;
    const auto h = numbers(n);
    float *x = on_gpu(h), *y = on_gpu<float>(n), *z = on_gpu<float>(n);
    stencil_1d<<<(n + BLOCK - 1) / BLOCK, BLOCK>>>(x, y, n);
    stencil_2d<<<dim3(5, 3), dim3(10, 10)>>>((const float (*)[33])x, (float (*)[33])z, 20);
    const auto one = take(y, n), two = take(z, n);
    const auto at = [&](int row, int column) {
        return row < 0 || row >= 20 || column < 0 || column >= 33 ? 0 : h[row * 33 + column];
    };
    for (int i = 0; i < n; ++i) {
        float expected = 0;
        for (int k = i - RADIUS; k <= i + RADIUS; ++k) expected += k >= 0 && k < n ? h[k] : 0;
        EXPECT(one[i] == expected);
        const int r = i / 33, c = i % 33;
        EXPECT(two[i] == at(r - 1, c) + at(r + 1, c) + at(r, c - 1) + at(r, c + 1) - 4 * h[i]);
    }
    CUDA(cudaFree(x));
}
