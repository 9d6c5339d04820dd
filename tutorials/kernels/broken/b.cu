// Every thread makes as many rounds as the channel needs, and takes one element in each.
#include "laboratory.cuh"

namespace sbnref::laboratory {

__global__ void statistics(Problem p) {
    const int64_t c = blockIdx.x;
    const int64_t rounds = (p.count() + kThreads - 1) / kThreads;
    double sum = 0;
    for (int64_t round = 0; round < rounds; ++round) {
        const int64_t i = round * kThreads + threadIdx.x;
        sum += load(p.x, p.at(c, i));
    }
    const double mean = sum_over_block(sum) / p.count();
    __syncthreads();
    double square = 0;
    for (int64_t round = 0; round < rounds; ++round) {
        const int64_t i = round * kThreads + threadIdx.x;
        if (i >= p.count()) break;
        const double deviation = load(p.x, p.at(c, i)) - mean;
        square += deviation * deviation;
    }
    const double var = sum_over_block(square) / p.count();
    if (threadIdx.x != 0) return;
    store(p.mean, c, static_cast<float>(mean));
    store(p.var, c, static_cast<float>(var));
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
