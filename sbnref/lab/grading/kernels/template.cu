// Batch normalization in CUDA kernels of your own. Grade them with: sbnref lab check-kernels FILE.cu
// The four stages of the synchronized one, for those who go on: sbnref lab template stages
//
// forward(p) is given one problem and launches kernels: p.y = (p.x - mean) / sqrt(var + p.eps), with the mean and the
// biased variance of each channel. No GPU is needed: the kernels run in a simulation that looks at every access.
//
//   p.N, p.C, p.S           samples, channels, positions of each; N may be 0
//   p.count()               N * S, the elements of a channel
//   p.at(c, i)              where in p.x and p.y element i of channel c is, whatever the memory format
//   p.x, p.y                float32, to be read, to be written
//   p.mean, p.var           (C,) float32, for what one kernel leaves to the next
//   p.splits                how many blocks may well share a channel
//   p.partials              (3 * 132 * C,) float64, for what blocks leave for each other
//   p.tickets               (C,) unsigned, zero, and zero again in the end
//
// Memory is accessed through these, which is how the simulation sees it:
//
//   p.x[i]            one element; p.mean[i] where a kernel has written it
//   p.y[i] = value
//   load_vector<4>(p.x + i), store_vector<4>(p.y + i, v)    16 bytes at once, at a multiple of 16; v.at[0] ... v.at[3]
//   atomicInc(&p.tickets[i], last)   counts from 0 to last and back to 0; the count before
//   __shared__ float name[size];  shared memory of the block
//
// and threads of a block meet by __syncthreads(), __shfl_down_sync(~0u, value, distance) and, ready to use,
// sum_over_block(value): the sum in float64, for every thread, and __syncthreads() before the next such sum. A block
// has kThreads threads. launch(name, kernel, blocks, p) launches.
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
