// Each thread sums up its share of the channel; then the block adds the shares up in a
// tree, half of the threads taking over from the other half.
#include "laboratory.cuh"

namespace sbnref::laboratory {

__global__ void statistics(Problem p) {
    const int64_t c = blockIdx.x;
    double sum = 0, square = 0;
    for (int64_t i = threadIdx.x; i < p.count(); i += kThreads) {
        const double x = load(p.x, p.at(c, i));
        sum += x;
        square += x * x;
    }
    SHARED_ARRAY(double, sums, kThreads);
    SHARED_ARRAY(double, squares, kThreads);
    const unsigned t = threadIdx.x;
    sums[t] = sum;
    squares[t] = square;
    __syncthreads();
    for (unsigned half = kThreads / 2; half > 0; half /= 2) {
        if (t < half) {
            sums[t] = double(sums[t]) + double(sums[t + half]);
            squares[t] = double(squares[t]) + double(squares[t + half]);
        }
    }
    if (t != 0) return;
    const double mean = double(sums[0]) / p.count();
    const double var = double(squares[0]) / p.count() - mean * mean;
    store(p.mean, c, static_cast<float>(mean));
    store(p.var, c, static_cast<float>(not_negative(var)));
}

__global__ void normalize(Problem p) {
    const int64_t c = blockIdx.x;
    const Line line = once_per_block([&] {
        const float var = read(p.var, c) + static_cast<float>(p.eps);
        return Line{read(p.mean, c), 1 / sqrtf(var), 0};
    });
    for (int64_t i = threadIdx.x; i < p.count(); i += kThreads)
        store(p.y, p.at(c, i), line(load(p.x, p.at(c, i))));
}

void forward(const Problem& p) {
    launch("statistics", statistics, p.C, p);
    launch("normalize", normalize, p.C, p);
}

}  // namespace sbnref::laboratory
