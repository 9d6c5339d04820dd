#include "program.h"

struct Shape {
    int n, c, spatial;
    __host__ __device__ int count() const { return n * spatial; }
    __host__ __device__ int at(int channel, int i) const { return (i / spatial * c + channel) * spatial + i % spatial; }
};

// A block computes the mean and the variance of its channel by Welford's method, then normalizes it.
__global__ void batch_norm(const float* x, float* y, float2* statistics, Shape shape) {
    __shared__ float means[64], sums[64], counts[64];
    const int t = threadIdx.x, channel = blockIdx.x;
    float mean = 0, sum = 0, count = 0;
    for (int i = t; i < shape.count(); i += blockDim.x) {
        const float v = x[shape.at(channel, i)], d = v - mean;
        mean += d / ++count;
        sum += d * (v - mean);
    }
    means[t] = mean, sums[t] = sum, counts[t] = count;
    for (int half = 32; half > 0; half /= 2) {
        __syncthreads();
        if (t >= half || counts[t + half] == 0) continue;
        const float d = means[t + half] - means[t], both = counts[t] + counts[t + half];
        means[t] += d * counts[t + half] / both;
        sums[t] += sums[t + half] + d * d * counts[t] * counts[t + half] / both;
        counts[t] = both;
    }
    __syncthreads();
    const float var = sums[0] / counts[0];
    if (t == 0) statistics[channel] = make_float2(means[0], var);
    for (int i = t; i < shape.count(); i += blockDim.x) {
        const int at = shape.at(channel, i);
        y[at] = (x[at] - means[0]) * rsqrtf(var + 1e-5f);
    }
}

int main() {
    constexpr Shape shape{3, 4, 25};
    const int size = shape.count() * shape.c;
    const auto h = numbers(size);
    float *x = on_gpu(h), *y = on_gpu<float>(size);
    float2* statistics = on_gpu<float2>(shape.c);
    batch_norm<<<shape.c, 64>>>(x, y, statistics, shape);
    const auto result = take(y, size);
    const auto found = take(statistics, shape.c);
    for (int c = 0; c < shape.c; ++c) {
        double mean = 0, var = 0;
        for (int i = 0; i < shape.count(); ++i) mean += h[shape.at(c, i)] / shape.count();
        for (int i = 0; i < shape.count(); ++i) var += pow(h[shape.at(c, i)] - mean, 2) / shape.count();
        EXPECT(close(found[c].x, mean) && close(found[c].y, var));
        for (int i = 0; i < shape.count(); ++i)
            EXPECT(close(result[shape.at(c, i)], (h[shape.at(c, i)] - mean) / sqrt(var + 1e-5)));
    }
    CUDA(cudaFree(x));
}
