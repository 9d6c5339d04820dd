// Rung 2, Welford: mean and variance in one pass. Each thread processes one element
// after the other, and the block merges the results. The kernels read x twice.
#pragma once

#include "1_naive.cu"

template <typename A>
struct Moments {
    A count, mean, m2;  // m2 = sum of (x - mean)^2
};

// Add an element by Welford's update.
__device__ inline void add(Moments<float>& to, float x) {
    to.count += 1;
    const float delta = x - to.mean;
    to.mean += delta / to.count;
    to.m2 += delta * (x - to.mean);
}

// Return the moments of two sets together, by Chan's formula.
template <typename A>
__device__ Moments<A> merge(const Moments<A>& a, const Moments<A>& b) {
    const A count = a.count + b.count, delta = b.mean - a.mean;
    const A fraction = count > 0 ? b.count / count : 0;
    return {
        count, a.mean + delta * fraction,
        a.m2 + b.m2 + delta * delta * a.count * fraction};
}

// Merge over the threads of a block, for thread 0, in a fixed order.
__device__ inline Moments<double> merge_over_block(const Moments<float>& mine) {
    __shared__ Moments<double> of_thread[kThreads];
    of_thread[threadIdx.x] = Moments<double>{mine.count, mine.mean, mine.m2};
    for (unsigned half = kThreads / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half)
            of_thread[threadIdx.x] = merge(
                of_thread[threadIdx.x],
                of_thread[threadIdx.x + half]);
    }
    return of_thread[threadIdx.x];
}

__global__ void welford_statistics(Problem p) {
    const int64_t c = blockIdx.x;
    Moments<float> mine{};
    for (int64_t i = threadIdx.x; i < p.count(); i += kThreads)
        add(mine, p.x[p.at(c, i)]);
    const Moments<double> all = merge_over_block(mine);
    if (threadIdx.x != 0) return;
    p.mean[c] = static_cast<float>(all.mean);
    p.var[c] = static_cast<float>(all.m2 / all.count);
}

inline void welford(const Problem& p) {
    welford_statistics<<<p.C, kThreads, 0, p.stream>>>(p);
    naive_normalize<<<p.C, kThreads, 0, p.stream>>>(p);
}
