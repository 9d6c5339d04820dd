// The channel is cut into as many pieces as there are threads, of equal length, and each
// thread works on its own.
#include "laboratory.cuh"

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
        sum += p.x[p.at(c, i)];
    const double mean = sum_over_block(sum) / p.count();
    __syncthreads();
    double square = 0;
    for (int64_t i = piece.begin; i < piece.end; i += piece.step) {
        const double deviation = p.x[p.at(c, i)] - mean;
        square += deviation * deviation;
    }
    const double var = sum_over_block(square) / p.count();
    if (threadIdx.x != 0) return;
    p.mean[c] = static_cast<float>(mean);
    p.var[c] = static_cast<float>(var);
}

__global__ void normalize(Problem p) {
    const int64_t c = blockIdx.x;
    const Line line = once_per_block([&] {
        const float var = p.var[c] + static_cast<float>(p.eps);
        return Line{p.mean[c], 1 / sqrtf(var), 0};
    });
    const Piece piece(p);
    for (int64_t i = piece.begin; i < piece.end; i += piece.step)
        p.y[p.at(c, i)] = line(p.x[p.at(c, i)]);
}

void forward(const Problem& p) {
    statistics<<<p.C, kThreads, 0, p.stream>>>(p);
    normalize<<<p.C, kThreads, 0, p.stream>>>(p);
}
