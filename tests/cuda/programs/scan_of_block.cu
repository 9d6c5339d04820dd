#include "program.h"

constexpr int kSize = 128;

// Hillis and Steele: inclusive, between two buffers.
__global__ void inclusive(const float* x, float* y) {
    __shared__ float s[2][kSize];
    const int t = threadIdx.x;
    int from = 0;
    s[from][t] = x[t];
    for (int d = 1; d < kSize; d *= 2, from ^= 1) {
        __syncthreads();
        s[from ^ 1][t] = t >= d ? s[from][t] + s[from][t - d] : s[from][t];
    }
    y[t] = s[from][t];
}

// Blelloch: exclusive, up and down a tree.
__global__ void exclusive(const float* x, float* y) {
    extern __shared__ float tree[];
    const int t = threadIdx.x;
    tree[2 * t] = x[2 * t];
    tree[2 * t + 1] = x[2 * t + 1];
    int d = 1;
    for (int left = kSize / 2; left > 0; left /= 2, d *= 2) {
        __syncthreads();
        if (t < left) tree[d * (2 * t + 2) - 1] += tree[d * (2 * t + 1) - 1];
    }
    if (t == 0) tree[kSize - 1] = 0;
    for (int left = 1; left < kSize; left *= 2) {
        d /= 2;
        __syncthreads();
        if (t < left) {
            float &a = tree[d * (2 * t + 1) - 1], &b = tree[d * (2 * t + 2) - 1];
            const float before = a;
            a = b;
            b += before;
        }
    }
    __syncthreads();
    y[2 * t] = tree[2 * t];
    y[2 * t + 1] = tree[2 * t + 1];
}

int main() {
    const auto h = numbers(kSize);
    float *x = on_gpu(h), *y = on_gpu<float>(kSize), *z = on_gpu<float>(kSize);
    inclusive<<<1, kSize>>>(x, y);
    exclusive<<<1, kSize / 2, kSize * sizeof(float)>>>(x, z);
    const auto with = take(y, kSize), without = take(z, kSize);
    float total = 0;
    for (int i = 0; i < kSize; ++i) {
        EXPECT(without[i] == total);
        EXPECT(with[i] == (total += h[i]));
    }
    CUDA(cudaFree(x));
}
