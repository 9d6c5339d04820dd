// Rung 5, payload: the block that finishes last merges, and writes this rank's payload,
// [w mean, w var, w mean^2, w, m] in float64. Each stage takes one launch. The
// all-reduce in between sums the payloads of the group.
#pragma once

#include "4_wide.cu"

// Store a partial result and, in the last block, the payload. One thread calls this.
__device__ inline void finish(
    const Problem& p, int64_t split, int64_t c, const Moments<double>& found) {
    store_partial(p, split, c, found);
    __threadfence();  // other blocks see the results before the ticket
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

// Return the line that normalizes a channel, from the group's payload. The mean has two
// parts, hi and a rest in the shift: x - hi is exact if x is near the mean.
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

// Launch a block for every share of every channel.
inline void launch(void (*kernel)(Problem), const Problem& p) {
    kernel<<<p.C * p.splits, kThreads, 0, p.stream>>>(p);
}

inline void payload_stats(const Problem& p) {
    launch(fits(p) ? payload_statistics<4> : payload_statistics<1>, p);
}

inline void payload_apply(const Problem& p) {
    launch(fits(p) ? payload_normalize<4> : payload_normalize<1>, p);
}
