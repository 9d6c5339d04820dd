// The four stages as a student may hand them in: a block for every channel, and sums in float64.
#include "laboratory.cuh"

// Calls f with every element of the block's channel that is this thread's.
template <typename F>
__device__ void each(const Problem& p, const F& f) {
    for (int64_t i = threadIdx.x; i < p.count(); i += kThreads) f(p.at(blockIdx.x, i));
}

// Two sums over the block in one kernel: each thread's terms, added up by the threads in turn.
struct Two {
    double a, b;
};

__device__ Two sums_over_block(Two mine) {
    __shared__ Two sums[kThreads];
    sums[threadIdx.x] = mine;
    for (unsigned half = kThreads / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x >= half) continue;
        const Two low = sums[threadIdx.x], high = sums[threadIdx.x + half];
        sums[threadIdx.x] = Two{low.a + high.a, low.b + high.b};
    }
    __syncthreads();
    return sums[0];
}

// ---- forward_stats: [w mean, w var, w mean^2, w, m] ----

__global__ void statistics(Problem p) {
    const int64_t c = blockIdx.x;
    const double m = p.count() > 0 ? p.count() : 1, first = p.count() > 0 ? p.x[p.at(c, 0)] : 0;
    Two mine{};
    each(p, [&](int64_t at) {
        const double deviation = p.x[at] - first;
        mine.a += deviation;
        mine.b += deviation * deviation;
    });
    const Two sums = sums_over_block(mine);
    if (threadIdx.x != 0) return;
    const double about = sums.a / m, mean = first + about, var = sums.b / m - about * about;
    p.payload[c] = p.weight * mean;
    p.payload[p.C + c] = p.weight * var;
    p.payload[2 * p.C + c] = p.weight * mean * mean;
    if (c != 0) return;
    p.payload[3 * p.C] = p.weight;
    p.payload[3 * p.C + 1] = static_cast<double>(p.count());
}

void forward_stats(const Problem& p) { statistics<<<p.C, kThreads, 0, p.stream>>>(p); }

// ---- forward_apply: y = gamma (x - mean) / sigma + beta ----

__global__ void normalize(Problem p) {
    const int64_t c = blockIdx.x;
    const double weights = p.total[3 * p.C];
    const double divisor = p.divisor > 0 ? p.divisor : weights > 1 ? weights : 1;
    const double s1 = p.total[c], s2 = p.total[p.C + c], s3 = p.total[2 * p.C + c];
    const double mean = s1 / divisor, between = s3 - mean * (2 * s1 - mean * weights);
    const double var = (s2 + (between < 0x1p-50 * s3 ? 0 : between)) / divisor;
    const double invstd = 1 / sqrt(var + p.eps);
    const double scale = p.gamma[c] * invstd, beta = p.beta[c];
    each(p, [&](int64_t at) { p.y[at] = static_cast<float>((p.x[at] - mean) * scale + beta); });
    if (threadIdx.x != 0) return;
    p.saved[c] = mean;
    p.saved[p.C + c] = invstd;
    p.saved[2 * p.C + c] = mean * invstd * (1 - weights / divisor);
    p.saved[3 * p.C + c] = 1 / divisor;
}

void forward_apply(const Problem& p) { normalize<<<p.C, kThreads, 0, p.stream>>>(p); }

// ---- backward_stats: [sum g, sum g xhat] ----

__global__ void gradient_sums(Problem p) {
    const int64_t c = blockIdx.x;
    const double mean = p.saved[c], invstd = p.saved[p.C + c];
    Two mine{};
    each(p, [&](int64_t at) {
        const double g = p.dy[at];
        mine.a += g;
        mine.b += g * (p.x[at] - mean) * invstd;
    });
    const Two sums = sums_over_block(mine);
    if (threadIdx.x != 0) return;
    p.payload[c] = sums.a;
    p.payload[p.C + c] = sums.b;
}

void backward_stats(const Problem& p) { gradient_sums<<<p.C, kThreads, 0, p.stream>>>(p); }

// ---- backward_apply: dx = gamma / sigma { g - k / D [A + xhat B - (B / sigma) mean (1 - W / D)] } ----

__global__ void input_gradient(Problem p) {
    const int64_t c = blockIdx.x;
    const double mean = p.saved[c], invstd = p.saved[p.C + c], skew = p.saved[2 * p.C + c];
    const double element = p.k * p.saved[3 * p.C + c], scale = p.gamma[c] * invstd;
    const double a = p.total[c], b = p.total[p.C + c];
    each(p, [&](int64_t at) {
        const double xhat = (p.x[at] - mean) * invstd;
        p.dx[at] = static_cast<float>(scale * (p.dy[at] - element * (a + xhat * b - skew * b)));
    });
}

void backward_apply(const Problem& p) { input_gradient<<<p.C, kThreads, 0, p.stream>>>(p); }
