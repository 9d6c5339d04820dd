// Synchronized batch normalization in CUDA kernels of your own: the four stages, with an all-reduce after each of the
// two that end in _stats. Grade them with: sbnref lab check FILE.cu --stage forward_stats, and so on; or hold them against
// the reference: sbnref compare --impl reference --impl FILE.cu
//
//   forward_stats -> all-reduce -> forward_apply         backward_stats -> all-reduce -> backward_apply
//
// `sbnref lab template kernels` explains how kernels are written. In addition p has:
//
//   p.weight, p.divisor     w, what this rank weighs, 0 where it is empty; D, or 0 where D is max(W, 1)
//   p.k                     w / m with m = p.count(), 0 where this rank is empty
//   p.payload               float64, what this rank tells the others, to be written
//   p.total                 float64, the payloads of all ranks, summed
//   p.gamma, p.beta         (C,) float32; ones and zeros where the layer has none
//   p.saved                 (4 * C,) float64, what forward_apply leaves to the backward stages, as you like. While
//                           that is not right, these may use the reference's: mean, 1 / sigma,
//                           mean / sigma (1 - W / D), 1 / D
//   p.dy, p.dx              float32, where x is too: p.at(c, i)
//
// Each stage has what it needs of these, and p.mean, p.var, p.partials and p.tickets to work with. Tensors are float32,
// (N, C, *), in both memory formats; other dtypes are refused, and what lies in memory otherwise is copied first. The
// running statistics are moved for you.
#include "laboratory.cuh"

// p.payload (3 * C + 2,) = [w mean, w var, w mean^2, w, m], with the mean and the biased variance of this rank's p.x.
__global__ void statistics(Problem p) {
    const int64_t c = blockIdx.x;  // a block for every channel
    // to be written
}

void forward_stats(const Problem& p) { statistics<<<p.C, kThreads, 0, p.stream>>>(p); }

// p.y = gamma (x - mean) / sigma + beta, and p.saved, with p.total = [S1, S2, S3, W, M], mean = S1 / D,
// sigma = sqrt(var + p.eps), var = (S2 + B) / D and B = S3 - mean (2 S1 - mean W), or 0 where that is below 2^-50 S3.
__global__ void normalize(Problem p) {
    const int64_t c = blockIdx.x;
    // to be written
}

void forward_apply(const Problem& p) { normalize<<<p.C, kThreads, 0, p.stream>>>(p); }

// p.payload (2 * C,) = [sum g, sum g xhat] over this rank's elements, with g = p.dy and xhat = (x - mean) / sigma.
__global__ void gradient_sums(Problem p) {
    const int64_t c = blockIdx.x;
    // to be written
}

void backward_stats(const Problem& p) { gradient_sums<<<p.C, kThreads, 0, p.stream>>>(p); }

// p.dx = gamma / sigma { g - k / D [A + xhat B - (B / sigma) mean (1 - W / D)] }, with p.total (2 * C,) = [A, B].
__global__ void input_gradient(Problem p) {
    const int64_t c = blockIdx.x;
    // to be written
}

void backward_apply(const Problem& p) { input_gradient<<<p.C, kThreads, 0, p.stream>>>(p); }
