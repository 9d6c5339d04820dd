// The lanes of a warp add up by shuffles; the warps leave what they found in shared
// memory, the sums first and behind them those of the squares.
#include "laboratory.cuh"

constexpr int kWarps = kThreads / kWarp;

__global__ void statistics(Problem p) {
    const int64_t c = blockIdx.x;
    double sum = 0, square = 0;
    for (int64_t i = threadIdx.x; i < p.count(); i += kThreads) {
        const double x = p.x[p.at(c, i)];
        sum += x;
        square += x * x;
    }
    for (int distance = kWarp / 2; distance > 0; distance /= 2) {
        sum += __shfl_down_sync(~0u, sum, distance);
        square += __shfl_down_sync(~0u, square, distance);
    }
    __shared__ double of_warp[kWarps];
    if (threadIdx.x % kWarp == 0) {
        of_warp[threadIdx.x / kWarp] = sum;
        of_warp[threadIdx.x / kWarp + kWarps] = square;
    }
    __syncthreads();
    if (threadIdx.x != 0) return;
    double sums = 0, squares = 0;
    for (int w = 0; w < kWarps; ++w) {
        sums += of_warp[w];
        squares += of_warp[w + kWarps];
    }
    const double mean = sums / p.count(), var = squares / p.count() - mean * mean;
    p.mean[c] = static_cast<float>(mean);
    p.var[c] = static_cast<float>(fmax(var, 0.0));
}

__global__ void normalize(Problem p) {
    const int64_t c = blockIdx.x;
    const Line line = once_per_block([&] {
        const float var = p.var[c] + static_cast<float>(p.eps);
        return Line{p.mean[c], 1 / sqrtf(var), 0};
    });
    for (int64_t i = threadIdx.x; i < p.count(); i += kThreads)
        p.y[p.at(c, i)] = line(p.x[p.at(c, i)]);
}

void forward(const Problem& p) {
    statistics<<<p.C, kThreads, 0, p.stream>>>(p);
    normalize<<<p.C, kThreads, 0, p.stream>>>(p);
}
