// Stage 3: the sums for the gradient.  Reads dy and x once; writes 2C numbers.
//
// sum g and sum g (x - hi) per thread, in float32 group by group, then in float64 over threads and blocks. xhat appears
// only at the end, when the sums are known: sum g xhat = (sum g (x - hi) - lo sum g) / sigma.
#include "reduce.cuh"

namespace sbnref {
namespace {

template <typename T, Layout layout, int V>
__global__ void __launch_bounds__(kMaxThreads, kMinBlocks)
    backward_stats_kernel(Plan plan, BackwardStats b, Workspace workspace) {
    using A = Accumulator<T>;
    using Own = Channels<layout, V>;
    constexpr int U = in_flight(layout, kBackwardUnroll, V, sizeof(T));
    __shared__ A means[kMaxTileChannels];
    extern __shared__ __align__(kAccessBytes) Pair scratch[];

    const Place place(plan, Direction::Forwards);
    const int64_t C = plan.channels, channel = place.own;
    const double* const saved = as<const double>(b.saved);
    double* const payload = as<double>(b.payload);
    const T* const arrays[] = {as<const T>(b.dy), as<const T>(b.x)};
    FirstPass<layout, V, U, 2, T> pass(plan, place, arrays);
    if (channel >= 0) means[threadIdx.x] = Split<A>(saved[channel]).hi;
    __syncthreads();

    A hi[Own::kCount] = {}, sum_g[Own::kCount] = {}, sum_gd[Own::kCount] = {};
    if (layout == Layout::ChannelsFirst || pass.more()) {
#pragma unroll
        for (int k = 0; k < Own::kCount; ++k) hi[k] = means[Own::in_tile(plan, place, k)];
    }
    pass.reduce(plan, [&](auto size, const auto& value) {
#pragma unroll
        for (int k = 0; k < Own::kCount; ++k) {
            A group_g = 0, group_gd = 0;
#pragma unroll
            for (int i = 0; i < decltype(size)::value; ++i) {
                const A gradient = value(0, k, i);
                group_g += gradient;
                group_gd += gradient * (value(1, k, i) - hi[k]);
            }
            sum_g[k] += group_g;
            sum_gd[k] += group_gd;
        }
    });

    const auto mine = [&](int k) { return Pair{static_cast<double>(sum_g[k]), static_cast<double>(sum_gd[k])}; };
    Pair sum;
    if (!sum_over_tile<layout, V>(plan, place, mine, sum, scratch, workspace) || channel < 0) return;
    const Split<A> mean(saved[channel]);
    payload[channel] = sum.first;
    payload[C + channel] = (sum.second - mean.lo * sum.first) * saved[C + channel];
}

}  // namespace

void backward_stats(const Plan& plan, const BackwardStats& stage, const Workspace& workspace, Stream stream) {
    const Registered registered(stage, workspace);
    launch("backward_stats", stage.x.dtype, plan, [&](auto c) {
        backward_stats_kernel<typename decltype(c)::T, decltype(c)::layout, decltype(c)::V>
            <<<plan.blocks(), plan.threads, scratch_bytes(plan), static_cast<cudaStream_t>(stream)>>>(
                plan, stage, workspace);
    });
}

}  // namespace sbnref
