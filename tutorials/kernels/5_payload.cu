// Rung 5, payload: the block that finishes last merges, and writes what this rank tells
// the others, [w mean, w var, w mean^2, w, m] in float64. One launch for each stage;
// between them is the all-reduce, which turns this rank's payload into the group's.
#pragma once

#include "4_wide.cu"

// Called by one thread for every channel that the block worked on.
__device__ inline void finish(
    const Problem& p, int64_t split, int64_t c, const Moments<double>& found) {
    store_partial(p, split, c, found);
    __threadfence();  // the partial results are seen before the ticket is
    const unsigned last = static_cast<unsigned>(p.splits) - 1;
    if (atomicInc(&p.tickets[c], last) != last) return;
    __threadfence();
    const Moments<double> all = merge_partials(p, c);
    const double var = all.count > 0 ? all.m2 / all.count : 0;
    p.payload[c] = p.weight * all.mean;
    p.payload[p.C + c] = p.weight * var;
    p.payload[2 * p.C + c] = p.weight * all.mean * all.mean;
    if (c != 0) return;
    p.payload[3 * p.C] = p.weight;
    p.payload[3 * p.C + 1] = all.count;
}

template <int V>
__global__ void payload_statistics(Problem p) {
    const Share share(p, blockIdx.x);
    const Moments<double> found = wide_moments<V>(p, share);
    if (threadIdx.x == 0) finish(p, share.split, share.channel, found);
}

// The line that normalizes a channel, from the group's payload. The mean is kept in two
// parts: x - hi is exact where x is near the mean.
__device__ inline Line from_payload(const Problem& p, int64_t c) {
    const double w = p.payload[3 * p.C], mean = p.payload[c] / w;
    const double within = p.payload[p.C + c] / w;
    const double between = p.payload[2 * p.C + c] / w - mean * mean;
    const double scale = 1 / sqrt(within + fmax(between, 0.0) + p.eps);
    const float hi = static_cast<float>(mean);
    return {hi, static_cast<float>(scale), static_cast<float>((hi - mean) * scale)};
}

template <int V>
__global__ void payload_normalize(Problem p) {
    const Share share(p, blockIdx.x);
    const Line line = once_per_block([&] { return from_payload(p, share.channel); });
    normalize<V>(p, line, share);
}

// A block for every share of every channel.
inline void launch(void (*kernel)(Problem), const Problem& p) {
    kernel<<<p.C * p.splits, kThreads, 0, p.stream>>>(p);
}

inline void payload_stats(const Problem& p) {
    launch(fits(p) ? payload_statistics<4> : payload_statistics<1>, p);
}

inline void payload_apply(const Problem& p) {
    launch(fits(p) ? payload_normalize<4> : payload_normalize<1>, p);
}
