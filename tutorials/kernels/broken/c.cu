// The channel is cut into as many pieces as there are threads, of equal length, and each
// thread works on its own.
#include "laboratory.cuh"

namespace sbnref::laboratory {

struct Piece {
    int64_t begin, end, step;

    __device__ explicit Piece(const Problem& p) {
        const int64_t length = (p.count() + kThreads - 1) / kThreads;
        begin = threadIdx.x * length;
        end = begin + length < p.count() ? begin + length : p.count();
        step = 1;
    }
};

__global__ void statistics(Problem p) {
    const int64_t c = blockIdx.x;
    const Piece piece(p);
    double sum = 0;
    for (int64_t i = piece.begin; i < piece.end; i += piece.step)
        sum += load(p.x, p.at(c, i));
    const double mean = sum_over_block(sum) / p.count();
    __syncthreads();
    double square = 0;
    for (int64_t i = piece.begin; i < piece.end; i += piece.step) {
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
    const Piece piece(p);
    for (int64_t i = piece.begin; i < piece.end; i += piece.step)
        store(p.y, p.at(c, i), line(load(p.x, p.at(c, i))));
}

void forward(const Problem& p) {
    launch("statistics", statistics, p.C, p);
    launch("normalize", normalize, p.C, p);
}

}  // namespace sbnref::laboratory
