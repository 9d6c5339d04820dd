// Rung 6, backwards: the second pass runs the first pass backwards, so that it starts
// on data that is still in the cache. The first block takes the last share, and every
// thread takes its last position first. The first pass does not change.
#pragma once

#include "5_payload.cu"

// Return the last of first, first + step, ... below n, or -1 if there is none.
__device__ inline int64_t last_position(int64_t first, int64_t step, int64_t n) {
    return first < n ? first + (n - 1 - first) / step * step : -1;
}

template <int V>
__global__ void backwards_normalize(Problem p) {
    const Share share(p, gridDim.x - 1 - blockIdx.x);
    const Line line = once_per_block([&] { return from_payload(p, share.channel); });
    const int64_t last = last_position(share.first, share.step, p.count() / V);
    for (int64_t i = last; i >= 0; i -= share.step)
        normalize<V>(p, line, share.channel, i);
}

inline void backwards_apply(const Problem& p) {
    launch(fits(p) ? backwards_normalize<4> : backwards_normalize<1>, p);
}
