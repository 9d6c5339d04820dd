// Step 4, wide: a thread moves four elements with one instruction, where they are side
// by side and begin at a multiple of 16 bytes.
#include "laboratory.cuh"

__device__ float first(const Problem& p, int64_t c) {
    return p.count() > 0 ? p.x[p.at(c, 0)] : 0;
}

__device__ void store_statistics(
    const Problem& p, int64_t c, double sum, double squares) {
    const double mean = sum / p.count(), var = squares / p.count() - mean * mean;
    p.mean[c] = static_cast<float>(first(p, c) + mean);
    p.var[c] = static_cast<float>(fmax(var, 0.0));
}

__device__ int64_t partial(const Problem& p, int which, int64_t split, int64_t c) {
    return (which * p.splits + split) * p.C + c;
}

template <int V>
__global__ void statistics(Problem p) {
    const int64_t c = blockIdx.x / p.splits, split = blockIdx.x % p.splits;
    const Line centered = once_per_block([&] { return Line{first(p, c), 1, 0}; });
    const int64_t begin = V * (split * kThreads + threadIdx.x);
    const int64_t step = V * p.splits * kThreads;
    float sum = 0, squares = 0;
    for (int64_t i = begin; i < p.count(); i += step) {
        const Floats<V> values = floats<V>(p.x + p.at(c, i));
        for (int k = 0; k < V; ++k) {
            const float deviation = centered(values.at[k]);
            sum += deviation;
            squares += deviation * deviation;
        }
    }
    const double all = sum_over_block(sum);
    __syncthreads();
    const double all_squares = sum_over_block(squares);
    if (threadIdx.x != 0) return;
    p.partials[partial(p, 0, split, c)] = all;
    p.partials[partial(p, 1, split, c)] = all_squares;
}

__global__ void add_up(Problem p) {
    const int64_t c = blockIdx.x * kThreads + threadIdx.x;
    if (c >= p.C) return;
    double sum = 0, squares = 0;
    for (int64_t s = 0; s < p.splits; ++s) {
        sum += p.partials[partial(p, 0, s, c)];
        squares += p.partials[partial(p, 1, s, c)];
    }
    store_statistics(p, c, sum, squares);
}

__device__ Line normalizing(const Problem& p, int64_t c) {
    return once_per_block([&] {
        const float var = p.var[c] + static_cast<float>(p.eps);
        return Line{p.mean[c], 1 / sqrtf(var), 0};
    });
}

// What was loaded wide is stored wide.
template <int V>
__global__ void normalize(Problem p) {
    const int64_t c = blockIdx.x / p.splits, split = blockIdx.x % p.splits;
    const Line line = normalizing(p, c);
    const int64_t begin = V * (split * kThreads + threadIdx.x);
    const int64_t step = V * p.splits * kThreads;
    for (int64_t i = begin; i < p.count(); i += step) {
        Floats<V> values = floats<V>(p.x + p.at(c, i));
        for (int k = 0; k < V; ++k) values.at[k] = line(values.at[k]);
        floats<V>(p.y + p.at(c, i)) = values;
    }
}

void forward(const Problem& p) {
    const bool fits = p.S % 4 == 0 && p.stride_s == 1;
    const auto first = fits ? statistics<4> : statistics<1>;
    const auto second = fits ? normalize<4> : normalize<1>;
    const int64_t blocks = p.C * p.splits;
    first<<<blocks, kThreads, 0, p.stream>>>(p);
    add_up<<<(p.C + kThreads - 1) / kThreads, kThreads, 0, p.stream>>>(p);
    second<<<blocks, kThreads, 0, p.stream>>>(p);
}
