// Stage 1: this rank's part of the statistics.  Reads x once; writes 3C + 2 numbers.
//
// Every thread runs Welford's update over its own elements, in groups of a few accesses. Two passes over registers give
// the mean and the squared deviations of a group, and Chan's formula merges them with the thread's. All values are
// relative to the thread's first value, so neither an offset nor an outlier costs precision. Threads and blocks are
// merged in float64 as plain sums about the channel's first element. It is a value of the data itself, so the
// subtraction at the end cancels no more than a factor of the number of elements.
#include "reduce.cuh"

namespace sbnref {
namespace {

template <typename A>
struct Moments {
    A shift = 0;  // the first value
    A mean = 0;   // of x - shift
    A m2 = 0;     // sum of (x - shift - mean)^2

    // Adds the values x(0) to x(G - 1), after `before` others.
    template <int G, typename Value>
    __device__ __forceinline__ void add(A before, const Value& x) {
        if (before == 0) shift = x(0);
        const A fraction = G * reciprocal(before + G);
        A sum = 0;
#pragma unroll
        for (int i = 0; i < G; ++i) sum += x(i) - shift;
        const A group_mean = sum * (A{1} / G);
        A group_m2 = 0;
#pragma unroll
        for (int i = 0; i < G; ++i) {
            const A deviation = x(i) - shift - group_mean;
            group_m2 += deviation * deviation;
        }
        const A delta = group_mean - mean;
        mean += delta * fraction;
        m2 += group_m2 + delta * delta * (before * fraction);
    }

    // [sum (x - pivot), sum (x - pivot)^2] over the `count` values added.
    __device__ Pair about(double pivot, double count) const {
        const double offset = static_cast<double>(shift) - pivot + static_cast<double>(mean);
        return {count * offset, static_cast<double>(m2) + count * offset * offset};
    }
};

template <typename T, Layout layout, int V>
__global__ void __launch_bounds__(kMaxThreads, kMinBlocks)
    forward_stats_kernel(Plan plan, ForwardStats f, Workspace workspace, double per_count)  // 1 / m, or 0 if m is 0
{
    using A = Accumulator<T>;
    using Own = Channels<layout, V>;
    constexpr int U = in_flight(layout, kForwardUnroll, V, sizeof(T));
    __shared__ double pivots[kMaxTileChannels];  // the first element of each channel
    extern __shared__ __align__(kAccessBytes) Pair scratch[];

    const T* const x = as<const T>(f.x);
    double* const payload = as<double>(f.payload);
    const T* const arrays[] = {x};
    FirstPass<layout, V, U, 1, T> pass(plan, Place(plan, Direction::Forwards), arrays);
    if (const int channel = Place(plan, Direction::Forwards).own; channel >= 0 && plan.count() > 0)
        pivots[threadIdx.x] = static_cast<double>(x[channel * plan.inner]);

    Moments<A> moments[Own::kCount];
    int count = 0;
    pass.reduce(plan, [&](auto size, const auto& value) {
        constexpr int G = decltype(size)::value;
#pragma unroll
        for (int k = 0; k < Own::kCount; ++k) moments[k].template add<G>(count, [&](int i) { return value(0, k, i); });
        count += G;
    });

    const Place place(plan, Direction::Forwards);
    __syncthreads();
    const auto mine = [&](int k) {
        return count > 0 ? moments[k].about(pivots[Own::in_tile(plan, place, k)], count) : Pair{0, 0};
    };
    Pair sum;
    if (!sum_over_tile<layout, V>(plan, place, mine, sum, scratch, workspace)) return;
    const int64_t C = plan.channels;
    if (place.own >= 0) {
        const double pivot = plan.count() > 0 ? pivots[threadIdx.x] : 0;
        const double offset = sum.first * per_count, mean = pivot + offset;
        const double var = not_negative(sum.second * per_count - offset * offset);
        payload[place.own] = f.weight * mean;
        payload[C + place.own] = f.weight * var;
        payload[2 * C + place.own] = f.weight * mean * mean;
    }
    if (place.tile == 0 && threadIdx.x == 0) {
        payload[3 * C] = f.weight;
        payload[3 * C + 1] = static_cast<double>(plan.count());
    }
}

}  // namespace

void forward_stats(const Plan& plan, const ForwardStats& stage, const Workspace& workspace, Stream stream) {
    const double per_count = plan.count() > 0 ? 1.0 / static_cast<double>(plan.count()) : 0;
    const Registered registered(stage, workspace);
    launch("forward_stats", stage.x.dtype, plan, [&](auto c) {
        forward_stats_kernel<typename decltype(c)::T, decltype(c)::layout, decltype(c)::V>
            <<<plan.blocks(), plan.threads, scratch_bytes(plan), static_cast<cudaStream_t>(stream)>>>(
                plan, stage, workspace, per_count);
    });
}

}  // namespace sbnref
