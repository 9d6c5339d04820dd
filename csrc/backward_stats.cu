// Stage 3: the sums that the gradient needs.  Reads dy and x once; writes 2C numbers.
//
// sum g and sum g (x - hi) per thread, in float32 group by group, then in float64 over threads and blocks. xhat appears
// only at the end, when the sums are known: sum g xhat = (sum g (x - hi) - lo sum g) / sigma.
#include "reduce.cuh"

namespace sbnref {
namespace {

template <typename T, Layout layout, int V>
__global__ void __launch_bounds__(kMaxThreads, kMinBlocks) backward_stats_kernel(
    Plan plan, Array<const T> dy, Array<const T> x,  // (outer, channels, inner)
    Array<const double> saved,                       // (4, C)
    Array<double> partials,                          // (tiles, splits, tile_channels, 2)
    Array<unsigned> tickets,                         // (kTickets,)
    Array<double> payload)                           // (2C,)
{
    using A = Accumulator<T>;
    constexpr int U = kBackwardUnroll;
    using G = Groups<layout, V, U>;
    SHARED_ARRAY(A, means, kMaxTileChannels);
    DYNAMIC_SHARED_ARRAY(Pair, scratch);

    const Place place(plan, Direction::Forwards);
    const int64_t C = plan.channels, channel = place.own;
    if (channel >= 0) means[threadIdx.x] = Split<A>(load(saved, channel)).hi;
    __syncthreads();

    Walk<layout, V> walk(plan, place, Direction::Forwards);
    A hi[G::kChannels] = {}, sum_g[G::kChannels] = {}, sum_gd[G::kChannels] = {};
    if (walk.more()) {
#pragma unroll
        for (int k = 0; k < G::kChannels; ++k) hi[k] = means[place.lane * G::kChannels + k];
    }
    while (walk.more()) {
        Chunk<V> chunks[U];
        Vector<T, V> gradients[U], values[U];
        walk.next(chunks);
        load_chunks<layout, V>(dy, chunks, gradients);
        load_chunks<layout, V>(x, chunks, values);

#pragma unroll
        for (int g = 0; g < G::kCount; ++g) {
            const auto take_in = [&](unsigned mask) {
#pragma unroll
                for (int k = 0; k < G::kChannels; ++k) {
                    A group_g = 0, group_gd = 0;
#pragma unroll
                    for (int i = 0; i < G::kValues; ++i) {
                        if (!(mask >> i & 1)) continue;
                        const A gradient = G::value(gradients, g, k, i);
                        group_g += gradient;
                        group_gd += gradient * (G::value(values, g, k, i) - hi[k]);
                    }
                    sum_g[k] += group_g;
                    sum_gd[k] += group_gd;
                }
            };
            const unsigned mask = G::mask(chunks, g);
            if (mask == G::kWhole)
                take_in(G::kWhole);  // the common case, with a constant
            else if (mask != 0)
                take_in(mask);
        }
    }

    const auto mine = [&](int k) { return Pair{static_cast<double>(sum_g[k]), static_cast<double>(sum_gd[k])}; };
    Pair sum;
    if (!sum_over_tile<G::kChannels>(plan, place, mine, sum, scratch, partials, tickets) || channel < 0) return;
    const Split<A> mean(load(saved, channel));
    store(payload, channel, sum.first);
    store(payload, C + channel, (sum.second - mean.lo * sum.first) * load(saved, C + channel));
}

}  // namespace

void backward_stats(const Plan& plan, const BackwardStats& stage, const Workspace& workspace, Stream stream) {
    dispatch(stage.x.dtype, plan, [&](auto c) {
        using Case = decltype(c);
        using T = typename Case::T;
        launch(
            "backward_stats", backward_stats_kernel<T, Case::layout, Case::V>, plan, scratch_bytes(plan), stream, plan,
            as<const T>(stage.dy), as<const T>(stage.x), as<const double>(stage.saved),
            Array<double>{workspace.partials, workspace.partials_size}, Array<unsigned>{workspace.tickets, kTickets},
            as<double>(stage.payload));
    });
}

}  // namespace sbnref
