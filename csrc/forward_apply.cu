// Stage 2: y, the running statistics, and the numbers saved for the backward pass.  Reads x once, writes y once.
//
// A block first computes its channels' statistics from the total, and from them y = (x - hi) scale + shift, in shared
// memory; then its threads stream. The first block of every tile also updates the running statistics.
#include "walk.cuh"

namespace sbnref {
namespace {

// The statistics of a channel from a total, like combine in sbnref/modes.py.
struct Statistics {
    Rounded mean, var, divisor, weight, count;
};

__device__ Statistics combine(const double* total, int64_t divisor, int64_t channels, int64_t channel) {
    const auto read = [&](int64_t i) { return Rounded{total[i]}; };
    const Rounded s1 = read(channel), s2 = read(channels + channel), s3 = read(2 * channels + channel);
    const Rounded weight = read(3 * channels), count = read(3 * channels + 1);
    const Rounded d{divisor > 0 ? static_cast<double>(divisor) : weight.value < 1 ? 1 : weight.value};
    const Rounded mean = s1 / d;
    const Rounded between = s3 - mean * (Rounded{2} * s1 - mean * weight), noise = Rounded{kNoise} * s3;
    return {mean, (s2 + (between.value < noise.value ? Rounded{0} : between)) / d, d, weight, count};
}

// Like update_running_stats in sbnref/running.py, for one channel. num_batches_tracked does not count this step yet.
__device__ void update_running_stats(
    const ForwardApply& f, const Statistics& stats, int64_t num_batches_tracked, int64_t channel) {
    const ChannelValue mean_before(f.running_mean, channel), var_before(f.running_var, channel);
    const Rounded one{1}, others = stats.count - one;
    const Rounded factor =
        f.cumulative ? one / Rounded{static_cast<double>(num_batches_tracked + 1)} : Rounded{f.momentum};
    const Rounded unbiased = stats.var * stats.count / (others.value < 1 ? one : others);
    const auto move = [&](const Buffer& buffer, const ChannelValue& before, Rounded value) {
        const Rounded moved = Rounded{before.get(buffer.dtype)} * (one - factor) + value * factor;
        store_channel(buffer, channel, moved.value);
    };
    move(f.running_mean, mean_before, stats.mean);
    move(f.running_var, var_before, unbiased);
}

template <typename A>
struct ForwardCoefficients {
    A hi, scale, shift;
};

template <typename T, Layout layout, int V>
__global__ void __launch_bounds__(kMaxThreads, kMinBlocks) forward_apply_kernel(Plan plan, ForwardApply f) {
    using A = Accumulator<T>;
    __shared__ ForwardCoefficients<A> coefficients[kMaxTileChannels];

    const double* const total = as<const double>(f.total);
    const Place place(plan, Direction::Backwards);
    const int64_t C = plan.channels, channel = place.own;
    const bool keeps = place.split == 0, updates = keeps && f.running_mean.data != nullptr;
    // The first tile counts the step. If other tiles read the count too, the last one that has read it counts.
    const bool counts = updates && f.num_batches_tracked != nullptr && (f.cumulative || place.tile == 0);

    // Issue all reads before the first value is used.
    const T* const inputs[] = {as<const T>(f.x)};
    SecondPass<layout, V, in_flight(layout, kForwardUnroll, V, sizeof(T)), 1, T> pass(plan, place, inputs);
    const int64_t steps = counts ? *f.num_batches_tracked : 0;
    Statistics stats{};
    double invstd = 0;
    if (channel >= 0) {
        const ChannelValue gamma(f.gamma, channel), beta(f.beta, channel);
        stats = combine(total, f.divisor, C, channel);
        invstd = 1 / sqrt(stats.var.value + f.eps);
        const Split<A> mean(stats.mean.value);
        const double scale = f.gamma.data ? gamma.get(f.gamma.dtype) * invstd : invstd;
        const double shift = (f.beta.data ? beta.get(f.beta.dtype) : 0) - mean.lo * scale;
        coefficients[threadIdx.x] = ForwardCoefficients<A>{mean.hi, static_cast<A>(scale), static_cast<A>(shift)};
    }
    __syncthreads();
    // While the first round is in flight.
    if (channel >= 0 && keeps) {
        double* const saved = as<double>(f.saved);
        saved[channel] = stats.mean.value;
        saved[C + channel] = invstd;
        // Zero unless W != D. That happens in 'default' with an empty rank, where the mean is not the data's mean.
        saved[2 * C + channel] = stats.mean.value * invstd * (1 - stats.weight.value / stats.divisor.value);
        saved[3 * C + channel] = 1 / stats.divisor.value;
        if (updates && stats.count.value > 0) update_running_stats(f, stats, steps, channel);
    }
    if (counts && threadIdx.x == 0 && stats.count.value > 0) {
        const unsigned last = static_cast<unsigned>(plan.tiles) - 1;
        if (f.cumulative) __threadfence();  // the others have read the count before it changes
        if (!f.cumulative || atomicInc(f.tickets, last) == last) {
            if (f.cumulative) __threadfence();
            *f.num_batches_tracked = steps + 1;
        }
    }

    pass.map(plan, place, coefficients, as<T>(f.y), [](const ForwardCoefficients<A>& c, const auto& at) {
        return (at(0) - c.hi) * c.scale + c.shift;
    });
}

}  // namespace

void forward_apply(const Plan& plan, const ForwardApply& stage, Stream stream) {
    const Registered registered(stage);
    launch("forward_apply", stage.x.dtype, plan, [&](auto c) {
        forward_apply_kernel<typename decltype(c)::T, decltype(c)::layout, decltype(c)::V>
            <<<plan.blocks(), plan.threads, 0, static_cast<cudaStream_t>(stream)>>>(plan, stage);
    });
}

}  // namespace sbnref
