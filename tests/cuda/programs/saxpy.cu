#include "program.h"

__global__ void __launch_bounds__(128) saxpy(int n, float a, const float* __restrict__ x, float* __restrict__ y) {
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x)
        y[i] = fmaf(a, __ldg(&x[i]), y[i]);
}

int main() {
    constexpr int n = 2000;
    const auto h = numbers(n);
    float *x = on_gpu(h), *y = on_gpu(h);
    saxpy<<<4, 128>>>(n, 3, x, y);
    const auto result = take(y, n);
    for (int i = 0; i < n; ++i) EXPECT(result[i] == 4 * h[i]);
    CUDA(cudaFree(x));
}
