// Rung 3, split: several blocks share a channel, so that every multiprocessor has work.
// Each block stores its result in memory. A small kernel merges them in a fixed order.
#pragma once

#include "2_welford.cu"

// This thread's part of x: every step-th position of a channel, from `first` on.
struct Share {
    int64_t channel, split, first, step;

    __device__ Share(const Problem& p, int64_t block)
        : channel(block / p.splits),
          split(block % p.splits),
          first(split * kThreads + threadIdx.x),
          step(p.splits * kThreads) {}
};

// Return the index of number k of a partial result; channels are side by side.
__device__ inline int64_t partial(const Problem& p, int k, int64_t split, int64_t c) {
    return (k * p.splits + split) * p.C + c;
}

__device__ inline void store_partial(
    const Problem& p, int64_t split, int64_t c, const Moments<double>& found) {
    p.partials[partial(p, 0, split, c)] = found.count;
    p.partials[partial(p, 1, split, c)] = found.mean;
    p.partials[partial(p, 2, split, c)] = found.m2;
}

__device__ inline Moments<double> merge_partials(const Problem& p, int64_t c) {
    Moments<double> all{};
    for (int64_t s = 0; s < p.splits; ++s) {
        const auto at = [&](int k) { return p.partials[partial(p, k, s, c)]; };
        all = merge<double>(all, {at(0), at(1), at(2)});
    }
    return all;
}

__global__ void split_statistics(Problem p) {
    const Share share(p, blockIdx.x);
    Moments<float> mine{};
    for (int64_t i = share.first; i < p.count(); i += share.step)
        add(mine, p.x[p.at(share.channel, i)]);
    const Moments<double> found = merge_over_block(mine);
    if (threadIdx.x == 0) store_partial(p, share.split, share.channel, found);
}

__global__ void split_merge(Problem p) {
    const int64_t c = blockIdx.x * kThreads + threadIdx.x;  // a thread for each channel
    if (c >= p.C) return;
    const Moments<double> all = merge_partials(p, c);
    p.mean[c] = static_cast<float>(all.mean);
    p.var[c] = static_cast<float>(all.m2 / all.count);
}

__global__ void split_normalize(Problem p) {
    const Share share(p, blockIdx.x);
    const Line line = once_per_block([&] { return normalizing(p, share.channel); });
    for (int64_t i = share.first; i < p.count(); i += share.step)
        p.y[p.at(share.channel, i)] = line(p.x[p.at(share.channel, i)]);
}

inline void split(const Problem& p) {
    split_statistics<<<p.C * p.splits, kThreads, 0, p.stream>>>(p);
    split_merge<<<(p.C + kThreads - 1) / kThreads, kThreads, 0, p.stream>>>(p);
    split_normalize<<<p.C * p.splits, kThreads, 0, p.stream>>>(p);
}
