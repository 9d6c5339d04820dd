// Rung 8, in flight: rung 6, where a thread loads 16 bytes four times before it uses
// the first. Little's law: memory is busy while bandwidth times latency bytes are in
// flight. On an H100, 3.35 TB/s (data sheet) times 600 ns (assumed) are 15 KB for each
// of 132 multiprocessors. nvcc 13.0 compiles the statistics for sm_90 so that each
// multiprocessor holds 1280 threads: 20 KB with one load per thread, and 82 KB with
// four. A thread that computes has nothing in flight.
#pragma once

#include "7_channels_last.cu"

template <int V>
__global__ void in_flight_statistics(Problem p) {
    const Share share(p, blockIdx.x);
    Moments<float> mine{};
    in_rounds(
        share.first, share.step, p.count() / V,
        [&](int64_t i) { return floats<V>(p.x + p.at(share.channel, i * V)); },
        [&](int64_t, const Floats<V>& x) { mine = merge(mine, moments(x)); });
    const Moments<double> found = merge_over_block(mine);
    if (threadIdx.x == 0) finish(p, share.split, share.channel, found);
}

template <int V>
__global__ void in_flight_normalize(Problem p) {
    const Share share(p, gridDim.x - 1 - blockIdx.x);
    const Line line = once_per_block([&] { return from_payload(p, share.channel); });
    const int64_t n = p.count() / V;
    in_rounds(
        last_position(share.first, share.step, n), -share.step, n,
        [&](int64_t i) { return floats<V>(p.x + p.at(share.channel, i * V)); },
        [&](int64_t i, Floats<V> values) {
            for (int k = 0; k < V; ++k) values.at[k] = line(values.at[k]);
            floats<V>(p.y + p.at(share.channel, i * V)) = values;
        });
}

inline void in_flight_stats(const Problem& p) {
    launch(fits(p) ? in_flight_statistics<4> : in_flight_statistics<1>, p);
}

inline void in_flight_apply(const Problem& p) {
    launch(fits(p) ? in_flight_normalize<4> : in_flight_normalize<1>, p);
}
