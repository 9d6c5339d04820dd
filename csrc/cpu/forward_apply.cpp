// Stage 2: y, the running statistics, and the numbers saved for the backward pass.  Reads x once, writes y once.
//
// Each channel's y = (x - hi) scale + shift is computed from the total before the elements are read. The statistics and
// the running statistics have to be equal bit for bit between the ranks and to the reference, so they use the
// reference's order of operations, without fusing (-ffp-contract=off).
#include <cmath>

#include "apply.h"

namespace sbnref::cpu {
namespace {

// The statistics of a channel from a total, like combine in sbnref/modes.py.
struct Statistics {
    double mean, var, divisor, weight, count;
};

Statistics combine(const double* total, int64_t divisor, int64_t channels, int64_t channel) {
    const double s1 = total[channel], s2 = total[channels + channel], s3 = total[2 * channels + channel];
    const double weight = total[3 * channels], count = total[3 * channels + 1];
    const double d = divisor > 0 ? static_cast<double>(divisor) : weight < 1 ? 1 : weight;
    const double mean = s1 / d;
    const double between = s3 - mean * (2 * s1 - mean * weight);
    return {mean, (s2 + (between < kNoise * s3 ? 0 : between)) / d, d, weight, count};
}

// Like update_running_stats in sbnref/running.py, for one channel.
void update_running_stats(const ForwardApply& f, const Statistics& stats, double factor, int64_t channel) {
    const double others = stats.count - 1, unbiased = stats.var * stats.count / (others < 1 ? 1 : others);
    const auto move = [&](const Buffer& buffer, double value) {
        store_channel(buffer, channel, load_channel(buffer, channel) * (1 - factor) + value * factor);
    };
    move(f.running_mean, stats.mean);
    move(f.running_var, unbiased);
}

template <typename T>
struct Normalize {
    Array<const T> x;

    template <typename Load, typename Lanes>
    SBNREF_INLINE Lanes map(const Load& load, const Lanes (&c)[3]) const {
        const auto& [hi, scale, shift] = c;
        return (load(x) - hi) * scale + shift;
    }
};

}  // namespace

void forward_apply(const Shape& shape, const ForwardApply& f) {
    const int64_t C = shape.channels;
    const double* const total = as<double>(f.total);
    double* const saved = as<double>(f.saved);
    const bool updates = f.running_mean.data != nullptr && total[3 * C + 1] > 0;
    if (updates && f.num_batches_tracked != nullptr) ++*f.num_batches_tracked;
    const double factor = f.cumulative && updates ? 1 / static_cast<double>(*f.num_batches_tracked) : f.momentum;

    dispatch(f.x.dtype, [&](auto* typed) {
        using T = std::remove_pointer_t<decltype(typed)>;
        using A = Accumulator<T>;
        Coefficients<A, 3> coefficients(shape);
        for_channels(C, [&](int64_t c) {
            const Statistics stats = combine(total, f.divisor, C, c);
            const double invstd = 1 / std::sqrt(stats.var + f.eps);
            const Split<A> mean(stats.mean);
            const double scale = f.gamma.data ? load_channel(f.gamma, c) * invstd : invstd;
            const double shift = (f.beta.data ? load_channel(f.beta, c) : 0) - mean.lo * scale;
            coefficients.set(c, {mean.hi, static_cast<A>(scale), static_cast<A>(shift)});
            saved[c] = stats.mean;
            saved[C + c] = invstd;
            // Zero unless W != D. That happens in 'default' with an empty rank, where the mean is not the data's mean.
            saved[2 * C + c] = stats.mean * invstd * (1 - stats.weight / stats.divisor);
            saved[3 * C + c] = 1 / stats.divisor;
            if (updates) update_running_stats(f, stats, factor, c);
        });
        apply(shape, Normalize<T>{elements<const T>(f.x)}, coefficients, as<T>(f.y));
    });
}

}  // namespace sbnref::cpu
