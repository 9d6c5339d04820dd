#include <cstring>

#include "program.h"

__global__ void scale(const float4* __restrict__ x, float4* __restrict__ y, int n4) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n4) return;
    float4 v = x[i];
    v.x *= 2;
    v.y *= 3;
    v.z = v.x + v.y;
    y[i] = v;
}

__global__ void pairs(const double* x, double* y, int n) {
    const int i = 2 * (blockIdx.x * blockDim.x + threadIdx.x);
    if (i + 1 < n) {
        const double2 v = *reinterpret_cast<const double2*>(&x[i]);
        reinterpret_cast<double2*>(y)[i / 2] = make_double2(v.y, v.x);
    } else if (i < n) {
        y[i] = x[i];  // the last of an odd number
    }
}

__global__ void bytes(const uchar4* pixels, uint2* sums, int n) {
    const int i = threadIdx.x;
    if (i < n) sums[i] = make_uint2(pixels[i].x + pixels[i].y, pixels[i].z + pixels[i].w);
}

// Legal wherever the elements are aligned: a GPU reads a structure by its widest member, and memcpy by bytes.
struct Pair {
    float a, b;
};
struct Sums {
    double a, b;
};
__global__ void narrow(const double* x, double* y) {
    const auto* const floats = reinterpret_cast<const float*>(x);
    const Pair pair = *reinterpret_cast<const Pair*>(floats + 1);
    *reinterpret_cast<Pair*>(reinterpret_cast<float*>(y) + 1) = pair;
    const Sums sums = *reinterpret_cast<const Sums*>(x + 3);
    *reinterpret_cast<Sums*>(y + 3) = sums;
    memcpy(reinterpret_cast<char*>(y) + 41, reinterpret_cast<const char*>(x) + 41, 4);
}

int main() {
    constexpr int n = 400, odd = 101;
    const auto h = numbers(n);
    float *x = on_gpu(h), *y = on_gpu<float>(n);
    scale<<<2, 64>>>(reinterpret_cast<float4*>(x), (float4*)y, n / 4);
    const auto scaled = take(y, n);
    for (int i = 0; i < n; i += 4) EXPECT(scaled[i + 2] == 2 * h[i] + 3 * h[i + 1] && scaled[i + 3] == h[i + 3]);

    const std::vector<double> doubles(h.begin(), h.begin() + odd);
    double *u = on_gpu(doubles), *v = on_gpu<double>(odd);
    pairs<<<1, 64>>>(u, v, odd);
    const auto swapped = take(v, odd);
    for (int i = 0; i < odd; ++i) EXPECT(swapped[i] == doubles[i == odd - 1 ? i : i ^ 1]);

    double* const z = zeros_on_gpu<double>(6);
    narrow<<<1, 1>>>(u, z);
    const auto copied = take(z, 6);
    for (int i : {3, 4}) EXPECT(copied[i] == doubles[i]);
    for (int i : {4, 8}) EXPECT(!std::memcmp((char*)copied.data() + i, (char*)doubles.data() + i, 4));
    EXPECT(!std::memcmp((char*)copied.data() + 41, (char*)doubles.data() + 41, 4));

    uchar4* pixels = on_gpu(std::vector<uchar4>(20, uchar4{200, 100, 3, 4}));
    uint2* sums = on_gpu<uint2>(20);
    bytes<<<1, 32>>>(pixels, sums, 20);
    for (const uint2 s : take(sums, 20)) EXPECT(s.x == 300 && s.y == 7);
    for (void* p : {(void*)x, (void*)u, (void*)pixels}) CUDA(cudaFree(p));
}
