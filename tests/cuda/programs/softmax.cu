#include <cfloat>

#include "program.h"

// One warp computes a row; a new maximum rescales the sum.
__global__ void softmax(const float* x, float* y, int rows, int columns) {
    const int row = blockIdx.x * blockDim.y + threadIdx.y;
    if (row >= rows) return;
    const float* mine = x + static_cast<size_t>(row) * columns;
    float greatest = -FLT_MAX, sum = 0;
    for (int i = threadIdx.x; i < columns; i += 32) {
        const float before = greatest;
        greatest = fmaxf(greatest, mine[i]);
        sum = sum * __expf(before - greatest) + __expf(mine[i] - greatest);
    }
    for (int d = 16; d > 0; d /= 2) {
        const float other = __shfl_xor_sync(0xffffffffu, greatest, d), both = max(greatest, other);
        sum *= expf(greatest - both);
        sum += __shfl_xor_sync(0xffffffffu, sum, d);
        greatest = both;
    }
    for (int i = threadIdx.x; i < columns; i += 32) __stcs(&y[row * columns + i], expf(mine[i] - greatest) / sum);
}

int main() {
    constexpr int rows = 10, columns = 77;
    const auto h = numbers(rows * columns);
    float *x = on_gpu(h), *y = on_gpu<float>(h.size());
    softmax<<<(rows + 3) / 4, dim3(32, 4)>>>(x, y, rows, columns);
    const auto result = take(y, h.size());
    for (int row = 0; row < rows; ++row) {
        double sum = 0;
        for (int i = 0; i < columns; ++i) sum += exp(h[row * columns + i]);
        for (int i = 0; i < columns; ++i) EXPECT(close(result[row * columns + i], exp(h[row * columns + i]) / sum));
    }
    CUDA(cudaFree(x));
}
