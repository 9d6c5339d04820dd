#include "program.h"

typedef float (*Function)(float);

__device__ float square(float v) { return v * v; }
__device__ float negate(float v) { return -v; }
__device__ Function functions[] = {square, negate};

struct Affine {
    float a, b;
    __device__ float operator()(float v) const { return a * v + b; }
};

struct View {
    float* data;
    int n;
    __device__ float& operator[](int i) const { return data[i]; }
};

template <typename F>
__global__ void map(View x, F f) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < x.n) x[i] = f(x[i]);
}

__global__ void twice(View x) {
    const auto apply = [x](int i, auto f) { x[i] = f(f(x[i])); };
    for (int i = threadIdx.x; i < x.n; i += blockDim.x) apply(i, [i](float v) { return v + i; });
}

int main() {
    constexpr int n = 100;
    const auto h = numbers(n);
    float* x = on_gpu(h);
    const View view{x, n};
    Function on_device[2];
    CUDA(cudaMemcpyFromSymbol(on_device, functions, sizeof on_device));
    for (Function f : on_device) map<<<2, 64>>>(view, f);
    map<<<4, 32>>>(view, Affine{2, 1});
    twice<<<1, 32>>>(view);
    const auto result = take(x, n);
    for (int i = 0; i < n; ++i) EXPECT(result[i] == -2 * h[i] * h[i] + 1 + 2 * i);
}
