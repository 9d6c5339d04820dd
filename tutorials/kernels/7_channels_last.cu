// Rung 7, channels-last: neighbouring threads take neighbouring channels, because these
// are side by side in memory. A block works on 32 channels: every warp reads a row of
// them, and the block's warps read different rows. A thread loads only 4 bytes at a
// time, so it loads four rows before it uses the first.
#pragma once

#include "6_backwards.cu"

constexpr int kRows = kThreads / kWarp;  // rows that a block reads at once
constexpr int kLoads = 4;                // loads of a thread in flight

// Call take(i, load(i)) for i = first, first + step, ... in [0, n), kLoads at a time.
// All loads of a round are issued before the first value is used. To go backwards, pass
// a negative step.
template <typename Load, typename Take>
__device__ void in_rounds(
    int64_t first, int64_t step, int64_t n, const Load& load, const Take& take) {
    const auto inside = [&](int64_t i) { return 0 <= i && i < n; };
    for (int64_t round = first; inside(round); round += kLoads * step) {
        decltype(load(round)) values[kLoads];
        for (int u = 0; u < kLoads; ++u)
            if (inside(round + u * step)) values[u] = load(round + u * step);
        for (int u = 0; u < kLoads; ++u)
            if (inside(round + u * step)) take(round + u * step, values[u]);
    }
}

// This thread's part of x: every step-th row of a channel, from `first` on.
struct Column {
    int64_t channel, split, first, step;

    __device__ Column(const Problem& p, int64_t block)
        : channel(block / p.splits * kWarp + threadIdx.x % kWarp),
          split(block % p.splits),
          first(channel < p.C ? split * kRows + threadIdx.x / kWarp : p.count()),
          step(p.splits * kRows) {}
};

__global__ void channels_last_statistics(Problem p) {
    const Column column(p, blockIdx.x);
    Moments<float> mine{};
    in_rounds(
        column.first, column.step, p.count(),
        [&](int64_t row) { return p.x[row * p.C + column.channel]; },
        [&](int64_t, float x) { add(mine, x); });

    __shared__ Moments<double> of_thread[kThreads];
    of_thread[threadIdx.x] = Moments<double>{mine.count, mine.mean, mine.m2};
    __syncthreads();
    if (threadIdx.x >= kWarp || column.channel >= p.C) return;
    Moments<double> found{};
    for (int row = 0; row < kRows; ++row)
        found = merge(found, of_thread[row * kWarp + threadIdx.x]);
    finish(p, column.split, column.channel, found);
}

__global__ void channels_last_normalize(Problem p) {
    const Column column(p, gridDim.x - 1 - blockIdx.x);
    __shared__ Line lines[kWarp];
    if (threadIdx.x < kWarp && column.channel < p.C)
        lines[threadIdx.x] = from_payload(p, column.channel);
    __syncthreads();
    if (column.channel >= p.C) return;
    const Line line = lines[threadIdx.x % kWarp];
    const int64_t last = last_position(column.first, column.step, p.count());
    in_rounds(
        last, -column.step, p.count(),
        [&](int64_t row) { return p.x[row * p.C + column.channel]; },
        [&](int64_t row, float x) { p.y[row * p.C + column.channel] = line(x); });
}

inline void channels_last_stats(const Problem& p) {
    const int64_t tiles = (p.C + kWarp - 1) / kWarp;
    channels_last_statistics<<<tiles * p.splits, kThreads, 0, p.stream>>>(p);
}

inline void channels_last_apply(const Problem& p) {
    const int64_t tiles = (p.C + kWarp - 1) / kWarp;
    channels_last_normalize<<<tiles * p.splits, kThreads, 0, p.stream>>>(p);
}
