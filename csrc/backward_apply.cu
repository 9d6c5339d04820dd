// Stage 4: dx and, if needed, dgamma and dbeta.  Reads dy and x once, writes dx once.
//
// dx = gamma / sigma { g - k/D [A + xhat B - skew B] }, collected per channel as dx = scale g - slope (x - hi) -
// offset.
#include "walk.cuh"

namespace sbnref {
namespace {

template <typename A>
struct BackwardCoefficients {
    A hi, scale, slope, offset;
};

template <typename T, Layout layout, int V>
__global__ void __launch_bounds__(kMaxThreads, kMinBlocks) backward_apply_kernel(Plan plan, BackwardApply b) {
    using A = Accumulator<T>;
    __shared__ BackwardCoefficients<A> coefficients[kMaxTileChannels];

    const double *const total = as<const double>(b.total), *const saved = as<const double>(b.saved);
    const Place place(plan, Direction::Backwards);
    const T* const inputs[] = {as<const T>(b.dy), as<const T>(b.x)};
    SecondPass<layout, V, in_flight(layout, kBackwardUnroll, V, sizeof(T)), 2, T> pass(plan, place, inputs);
    if (const int64_t C = plan.channels, channel = place.own; channel >= 0) {
        const ChannelValue gamma(b.gamma, channel);
        const double sum_g = total[channel], sum_gx = total[C + channel];
        const Split<A> mean(saved[channel]);
        const double invstd = saved[C + channel], skew = saved[2 * C + channel];
        const double k = b.k * saved[3 * C + channel];  // the weight of one element in the mean
        const double scale = b.gamma.data ? gamma.get(b.gamma.dtype) * invstd : invstd;
        const double slope = scale * k * sum_gx * invstd;
        const double offset = scale * k * (sum_g - (mean.lo * invstd + skew) * sum_gx);
        coefficients[threadIdx.x] =
            BackwardCoefficients<A>{mean.hi, static_cast<A>(scale), static_cast<A>(slope), static_cast<A>(offset)};
    }
    __syncthreads();
    // While the first round is in flight. The sums are read again instead of kept over the barrier.
    if (place.own >= 0 && place.split == 0) {
        if (b.dgamma.data) store_channel(b.dgamma, place.own, total[plan.channels + place.own] / b.ranks);
        if (b.dbeta.data) store_channel(b.dbeta, place.own, total[place.own] / b.ranks);
    }

    pass.map(plan, place, coefficients, as<T>(b.dx), [](const BackwardCoefficients<A>& c, const auto& at) {
        const A g = at(0), deviation = at(1) - c.hi;
        return g * c.scale - (deviation * c.slope + c.offset);
    });
}

}  // namespace

void backward_apply(const Plan& plan, const BackwardApply& stage, Stream stream) {
    const Registered registered(stage);
    launch("backward_apply", stage.x.dtype, plan, [&](auto c) {
        backward_apply_kernel<typename decltype(c)::T, decltype(c)::layout, decltype(c)::V>
            <<<plan.blocks(), plan.threads, 0, static_cast<cudaStream_t>(stream)>>>(plan, stage);
    });
}

}  // namespace sbnref
