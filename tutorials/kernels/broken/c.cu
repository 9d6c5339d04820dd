// The channel is cut into pieces of equal length, one for each thread. Each thread
// works on its own piece.
#include "laboratory.cuh"

// Return the index of element i of channel c in x, which is (N, C, S).
__device__ int at(int c, int i, int C, int S) { return (i / S * C + c) * S + i % S; }

// The piece of a channel that a thread works on.
struct Piece {
    int begin, end, step;

    __device__ explicit Piece(int count) {
        const int length = (count + kThreads - 1) / kThreads;
        begin = threadIdx.x * length;
        end = min(begin + length, count);
        step = 1;
    }
};

__global__ void statistics(
    const float* x, float* mean, float* var, int count, int C, int S) {
    const int c = blockIdx.x;
    const Piece piece(count);
    double sum = 0;
    for (int i = piece.begin; i < piece.end; i += piece.step) sum += x[at(c, i, C, S)];
    const double average = sum_over_block(sum) / count;
    __syncthreads();
    double square = 0;
    for (int i = piece.begin; i < piece.end; i += piece.step) {
        const double deviation = x[at(c, i, C, S)] - average;
        square += deviation * deviation;
    }
    const double all = sum_over_block(square);
    if (threadIdx.x != 0) return;
    mean[c] = average;
    var[c] = all / count;
}

void moments(const float* x, float* mean, float* var, int N, int C, int S) {
    statistics<<<C, kThreads>>>(x, mean, var, N * S, C, S);
}
