#include "program.h"

namespace kernels {

template <typename T>
struct Square {
    __host__ __device__ T operator()(T v) const { return v * v; }
};

template <typename T, int PerThread, typename Op = Square<T>>
__global__ void apply(T* x, int n, Op op = Op()) {
    T mine[PerThread];
    const int first = (blockIdx.x * blockDim.x + threadIdx.x) * PerThread;
#pragma unroll
    for (int k = 0; k < PerThread; ++k)
        if (first + k < n) mine[k] = op(x[first + k]);
    for (int k = 0; k < PerThread && first + k < n; ++k) x[first + k] = mine[k];
}

}  // namespace kernels

template <int Threads>
void run(int* x, int n) {
    kernels::apply<int, (Threads > 32 ? 4 : 2)><<<(n + 127) / 128, Threads>>>(x, n);
}

template <bool Negate>
__global__ void copy(const int* x, int* y) {
    y[threadIdx.x] = Negate ? -x[threadIdx.x] : x[threadIdx.x];
}

int main() {
    constexpr int n = 200;
    std::vector<int> h(n);
    for (int i = 0; i < n; ++i) h[i] = i - 50;
    int *x = on_gpu(h), *y = on_gpu<int>(n);
    run<64>(x, n);
    copy<(n > 100)><<<1, n>>>(x, y);
    const auto result = take(y, n);
    for (int i = 0; i < n; ++i) EXPECT(result[i] == -h[i] * h[i]);
    CUDA(cudaFree(x));
}
