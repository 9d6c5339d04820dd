#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include "program.h"

__global__ void halves(const half* x, __half* y, int n) {
    const int i = threadIdx.x;
    if (i < n) y[i] = __hadd(__hmul(x[i], __float2half(0.5f)), __float2half_rn(1.0f));
}

__global__ void pairs(const half2* x, half2* y, int n) {
    const int i = threadIdx.x;
    if (i >= n) return;
    const half2 twice = __hadd2(x[i], x[i]);
    const float2 f = __half22float2(twice);
    y[i] = __hfma2(twice, __float2half2_rn(2.0f), __floats2half2_rn(f.y, f.x));
}

__global__ void brains(const __nv_bfloat16* x, __nv_bfloat16* y, float* sum, int n) {
    const int i = threadIdx.x;
    const float v = i < n ? __bfloat162float(x[i]) : 0;
    if (i < n) y[i] = __float2bfloat16(v * v);
    float all = v;
    for (int d = 16; d > 0; d /= 2) all += __shfl_down_sync(~0u, all, d);
    if (i == 0) *sum = all;
}

int main() {
    constexpr int n = 24;
    const auto f = numbers(n);
    std::vector<half> h(n);
    std::vector<__nv_bfloat16> b(n);
    for (int i = 0; i < n; ++i) h[i] = __float2half(f[i]), b[i] = __float2bfloat16(f[i]);
    half *x = on_gpu(h), *y = on_gpu<half>(n);
    halves<<<1, 32>>>(x, y, n);
    const auto one = take(y, n);
    half* z = on_gpu<half>(n);
    pairs<<<1, 32>>>(reinterpret_cast<half2*>(x), reinterpret_cast<half2*>(z), n / 2);
    const auto two = take(z, n);
    __nv_bfloat16 *u = on_gpu(b), *v = on_gpu<__nv_bfloat16>(n);
    float* total = on_gpu<float>(1);
    brains<<<1, 32>>>(u, v, total, n);
    const auto squares = take(v, n);
    EXPECT(take(total, 1)[0] == sum(f));
    for (int i = 0; i < n; ++i) {
        EXPECT(__half2float(one[i]) == f[i] / 2 + 1);
        EXPECT(__half2float(two[i]) == 4 * f[i] + 2 * f[i ^ 1]);
        EXPECT(__bfloat162float(squares[i]) == f[i] * f[i]);
    }
    EXPECT(__half2float(__float2half(2049.0f)) == 2048 && __half2float(__float2half(1e-7f)) == 0x1p-23f);
    EXPECT(std::isinf(__half2float(__float2half(65520.0f))) && __bfloat162float(__float2bfloat16(257.0f)) == 256);
    CUDA(cudaFree(x));
    CUDA(cudaFree(u));
}
