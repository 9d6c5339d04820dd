#include "program.h"

struct Totals {
    float sum;
    int positive, least, greatest;
    unsigned long long squares;
};

__global__ void reduce(const float* x, int n, Totals* totals) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const float v = x[i];
    atomicAdd(&totals->sum, v);
    if (v > 0) atomicAdd(&totals->positive, 1);
    atomicMin(&totals->least, static_cast<int>(v));
    atomicMax(&totals->greatest, static_cast<int>(v));
    atomicAdd(&totals->squares, static_cast<unsigned long long>(v * v));
}

int main() {
    constexpr int n = 500;
    const auto h = numbers(n);
    float* x = on_gpu(h);
    Totals* totals = zeros_on_gpu<Totals>(1);
    reduce<<<(n + 63) / 64, 64>>>(x, n, totals);
    Totals expected{};
    for (const float v : h) {
        expected.sum += v;
        expected.positive += v > 0;
        expected.squares += static_cast<unsigned long long>(v * v);
    }
    const Totals got = take(totals, 1)[0];
    EXPECT(got.sum == expected.sum && got.positive == expected.positive && got.squares == expected.squares);
    EXPECT(got.least == -5 && got.greatest == 7);
    CUDA(cudaFree(x));
}
