// Batch normalization in CUDA kernels of your own. Grade them with: sbnref lab check-kernels FILE.cu
// The four stages of synchronized batch norm, for those who go on: sbnref lab template stages
//
// forward(p) launches kernels that compute p.y = (p.x - mean) / sqrt(var + p.eps), with the mean and the biased
// variance of each channel. No GPU is needed: the kernels run in a simulation that watches every access.
//
//   p.N, p.C, p.S           samples, channels, positions of each; N may be 0
//   p.count()               N * S, the elements of a channel
//   p.at(c, i)              the index in p.x and p.y of element i of channel c, in either memory format
//   p.x, p.y                float32, the input and the output
//   p.mean, p.var           (C,) float32, for what one kernel leaves to the next
//   p.splits                how many blocks may share a channel
//   p.partials              (3 * 132 * C,) float64, for what blocks leave for each other
//   p.tickets               (C,) unsigned, zero before and after; count with atomicInc(&p.tickets[c], last)
//
// The rest is ordinary CUDA: p.x[i], __shared__, __syncthreads(), shuffles, atomics, <<<>>>. A block has kThreads
// threads, a multiple of kWarp. Ready to use: sum_over_block(value), the sum in float64 for every thread of the block
// (__syncthreads() before the next such sum), and floats<4>(p.x + i), 16 bytes at once.
#include "laboratory.cuh"

__global__ void statistics(Problem p) {
    const int64_t c = blockIdx.x;  // a block for every channel
    // to be written: p.mean and p.var of channel c
}

__global__ void normalize(Problem p) {
    const int64_t c = blockIdx.x;
    // to be written: p.y of channel c
}

void forward(const Problem& p) {
    statistics<<<p.C, kThreads, 0, p.stream>>>(p);
    normalize<<<p.C, kThreads, 0, p.stream>>>(p);
}
