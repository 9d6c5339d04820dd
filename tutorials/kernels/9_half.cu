// Rung 9, half precision: x and y are float16, so 16 bytes are eight elements and the
// traffic halves. Sums and arithmetic stay float32.
#pragma once

#include <cuda_fp16.h>

#include "8_in_flight.cu"

// V elements that one instruction moves.
template <int V>
struct alignas(2 * V) Halves {
    __half at[V];
};

// Return V elements from index `at` on; the array of a Problem holds __half here.
template <int V>
__device__ const Halves<V>& halves(const float* array, int64_t at) {
    return *reinterpret_cast<const Halves<V>*>(
        reinterpret_cast<const __half*>(array) + at);
}
template <int V>
__device__ Halves<V>& halves(float* array, int64_t at) {
    return *reinterpret_cast<Halves<V>*>(reinterpret_cast<__half*>(array) + at);
}

template <int V>
__global__ void half_statistics(Problem p) {
    const Share share(p, blockIdx.x);
    Moments<float> mine{};
    in_rounds(
        share.first, share.step, p.count() / V,
        [&](int64_t i) { return halves<V>(p.x, p.at(share.channel, i * V)); },
        [&](int64_t, const Halves<V>& x) {
            Floats<V> values;
            for (int k = 0; k < V; ++k) values.at[k] = __half2float(x.at[k]);
            mine = merge(mine, moments(values));
        });
    const Moments<double> found = merge_over_block(mine);
    if (threadIdx.x == 0) finish(p, share.split, share.channel, found);
}

template <int V>
__global__ void half_normalize(Problem p) {
    const Share share(p, gridDim.x - 1 - blockIdx.x);
    const Line line = once_per_block([&] { return from_payload(p, share.channel); });
    const int64_t n = p.count() / V;
    in_rounds(
        last_position(share.first, share.step, n), -share.step, n,
        [&](int64_t i) { return halves<V>(p.x, p.at(share.channel, i * V)); },
        [&](int64_t i, Halves<V> values) {
            for (int k = 0; k < V; ++k)
                values.at[k] = __float2half(line(__half2float(values.at[k])));
            halves<V>(p.y, p.at(share.channel, i * V)) = values;
        });
}

inline bool fits_halves(const Problem& p) { return p.S % 8 == 0 && p.stride_s == 1; }

inline void half_stats(const Problem& p) {
    launch(fits_halves(p) ? half_statistics<8> : half_statistics<1>, p);
}

inline void half_apply(const Problem& p) {
    launch(fits_halves(p) ? half_normalize<8> : half_normalize<1>, p);
}
