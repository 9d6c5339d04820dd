// The four stages as a student may hand them in: a block for every channel, and sums in float64.
#include "laboratory.cuh"

namespace sbnref::laboratory {

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
    SHARED_ARRAY(Two, sums, kThreads);
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
    const double m = p.count() > 0 ? p.count() : 1, first = p.count() > 0 ? load(p.x, p.at(c, 0)) : 0;
    Two mine{};
    each(p, [&](int64_t at) {
        const double deviation = load(p.x, at) - first;
        mine.a += deviation;
        mine.b += deviation * deviation;
    });
    const Two sums = sums_over_block(mine);
    if (threadIdx.x != 0) return;
    const double about = sums.a / m, mean = first + about, var = sums.b / m - about * about;
    store(p.payload, c, p.weight * mean);
    store(p.payload, p.C + c, p.weight * var);
    store(p.payload, 2 * p.C + c, p.weight * mean * mean);
    if (c != 0) return;
    store(p.payload, 3 * p.C, p.weight);
    store(p.payload, 3 * p.C + 1, static_cast<double>(p.count()));
}

void forward_stats(const Problem& p) { launch("statistics", statistics, p.C, p); }

// ---- forward_apply: y = gamma (x - mean) / sigma + beta ----

__global__ void normalize(Problem p) {
    const int64_t c = blockIdx.x;
    const double weights = load(p.total, 3 * p.C);
    const double divisor = p.divisor > 0 ? p.divisor : weights > 1 ? weights : 1;
    const double s1 = load(p.total, c), s2 = load(p.total, p.C + c), s3 = load(p.total, 2 * p.C + c);
    const double mean = s1 / divisor, between = s3 - mean * (2 * s1 - mean * weights);
    const double var = (s2 + (between < 0x1p-50 * s3 ? 0 : between)) / divisor;
    const double invstd = 1 / sqrt(var + p.eps);
    const double scale = load(p.gamma, c) * invstd, beta = load(p.beta, c);
    each(p, [&](int64_t at) { store(p.y, at, static_cast<float>((load(p.x, at) - mean) * scale + beta)); });
    if (threadIdx.x != 0) return;
    store(p.saved, c, mean);
    store(p.saved, p.C + c, invstd);
    store(p.saved, 2 * p.C + c, mean * invstd * (1 - weights / divisor));
    store(p.saved, 3 * p.C + c, 1 / divisor);
}

void forward_apply(const Problem& p) { launch("normalize", normalize, p.C, p); }

// ---- backward_stats: [sum g, sum g xhat] ----

__global__ void gradient_sums(Problem p) {
    const int64_t c = blockIdx.x;
    const double mean = read(p.saved, c), invstd = read(p.saved, p.C + c);
    Two mine{};
    each(p, [&](int64_t at) {
        const double g = load(p.dy, at);
        mine.a += g;
        mine.b += g * (load(p.x, at) - mean) * invstd;
    });
    const Two sums = sums_over_block(mine);
    if (threadIdx.x != 0) return;
    store(p.payload, c, sums.a);
    store(p.payload, p.C + c, sums.b);
}

void backward_stats(const Problem& p) { launch("gradient sums", gradient_sums, p.C, p); }

// ---- backward_apply: dx = gamma / sigma { g - k / D [A + xhat B - (B / sigma) mean (1 - W / D)] } ----

__global__ void input_gradient(Problem p) {
    const int64_t c = blockIdx.x;
    const double mean = read(p.saved, c), invstd = read(p.saved, p.C + c), skew = read(p.saved, 2 * p.C + c);
    const double element = p.k * read(p.saved, 3 * p.C + c), scale = load(p.gamma, c) * invstd;
    const double a = load(p.total, c), b = load(p.total, p.C + c);
    each(p, [&](int64_t at) {
        const double xhat = (load(p.x, at) - mean) * invstd;
        store(p.dx, at, static_cast<float>(scale * (load(p.dy, at) - element * (a + xhat * b - skew * b))));
    });
}

void backward_apply(const Problem& p) { launch("input gradient", input_gradient, p.C, p); }

}  // namespace sbnref::laboratory
