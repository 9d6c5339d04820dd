// Step 2, one pass: a channel's two sums at once. They are of deviations from its first
// element, which is near the mean wherever that is.
#include "laboratory.cuh"

__device__ float first(const Problem& p, int64_t c) {
    return p.count() > 0 ? p.x[p.at(c, 0)] : 0;
}

// Of a channel, from the sums of all deviations from its first element and of their
// squares.
__device__ void store_statistics(
    const Problem& p, int64_t c, double sum, double squares) {
    const double mean = sum / p.count(), var = squares / p.count() - mean * mean;
    p.mean[c] = static_cast<float>(first(p, c) + mean);
    p.var[c] = static_cast<float>(fmax(var, 0.0));
}

__global__ void statistics(Problem p) {
    const int64_t c = blockIdx.x;
    const Line centered = once_per_block([&] { return Line{first(p, c), 1, 0}; });
    float sum = 0, squares = 0;
    for (int64_t i = threadIdx.x; i < p.count(); i += kThreads) {
        const float deviation = centered(p.x[p.at(c, i)]);
        sum += deviation;
        squares += deviation * deviation;
    }
    const double all = sum_over_block(sum);
    __syncthreads();
    const double all_squares = sum_over_block(squares);
    if (threadIdx.x == 0) store_statistics(p, c, all, all_squares);
}

__device__ Line normalizing(const Problem& p, int64_t c) {
    return once_per_block([&] {
        const float var = p.var[c] + static_cast<float>(p.eps);
        return Line{p.mean[c], 1 / sqrtf(var), 0};
    });
}

__global__ void normalize(Problem p) {
    const int64_t c = blockIdx.x;
    const Line line = normalizing(p, c);
    for (int64_t i = threadIdx.x; i < p.count(); i += kThreads)
        p.y[p.at(c, i)] = line(p.x[p.at(c, i)]);
}

void forward(const Problem& p) {
    statistics<<<p.C, kThreads, 0, p.stream>>>(p);
    normalize<<<p.C, kThreads, 0, p.stream>>>(p);
}
