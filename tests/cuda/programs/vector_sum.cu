#include "program.h"

__global__ void add(const float* x, const float* y, float* z, int n) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) z[i] = x[i] + y[i];
}

int main(int argc, char** argv) {
    const int n = argc > 1 ? std::atoi(argv[1]) : 1000;
    const auto h = numbers(n);
    float *x = on_gpu(h), *y = on_gpu(h), *z = on_gpu<float>(n);
    add<<<(n + 255) / 256, 256>>>(x, y, z, n);
    const auto sums = take(z, n);
    for (int i = 0; i < n; ++i) EXPECT(sums[i] == 2 * h[i]);
    CUDA(cudaFree(x));
    CUDA(cudaFree(y));
}
