// Stage 1: this rank's part of the statistics.  Reads x once; writes 3C + 2 numbers.
//
// A block sums its deviations d = x - center and their squares, about a center near its mean: mean = center + sum d /
// n, and the sum of squares about the mean is sum d^2 - (sum d)^2 / n, with little cancellation. Chan's formula merges
// the blocks' means and squares in float64.
#include "reduce.h"

namespace sbnref::cpu {
namespace {

template <typename T>
struct Moments {
    using A = Accumulator<T>;

    Array<const T> x;

    template <typename Load>
    SBNREF_INLINE Terms<A> terms(const Load& load, const Lanes<A>& center) const {
        const Lanes<A> d = load(x) - center;
        return {d, d * d};
    }

    // [mean, sum (x - mean)^2] of a block
    static Pair partial(const Pair& sums, double per_count, A center) {
        const double distance = sums.first * per_count;
        const double square = sums.second - sums.first * distance;
        return {center + distance, square < 0 ? 0 : square};
    }
};

}  // namespace

void forward_stats(const Shape& shape, const ForwardStats& f) {
    const int64_t C = shape.channels;
    const double count = static_cast<double>(shape.count()), per_count = count > 0 ? 1 / count : 0;
    double* const payload = as<double>(f.payload);
    double *const means = payload, *const variances = payload + C, *const squares = payload + 2 * C;
    dispatch(f.x.dtype, [&](auto* typed) {
        using T = std::remove_pointer_t<decltype(typed)>;
        Partials partials = reduce(shape, Moments<T>{elements<const T>(f.x)});
        const int64_t groups = partials.groups();

        // Group by group, to work on neighbouring channels at once. Sum the means about the first of them: then the sum
        // is as exact as they are.
        in_parallel(C, ceil_div(kLeastWork, groups + 1), [&](int64_t begin, int64_t end) {
            std::fill(means + begin, means + end, 0.0);
            std::fill(variances + begin, variances + end, 0.0);
            for (int64_t g = 0; g < groups; ++g)
                for (int64_t c = begin; c < end; ++c)
                    means[c] += partials.counts[g] * (partials.at(g, c).first - partials.at(0, c).first);
            for (int64_t c = begin; c < end; ++c)
                means[c] = means[c] * per_count + (groups > 0 ? partials.at(0, c).first : 0);
            for (int64_t g = 0; g < groups; ++g) {
                for (int64_t c = begin; c < end; ++c) {
                    const double apart = partials.at(g, c).first - means[c];
                    variances[c] += partials.at(g, c).second + partials.counts[g] * apart * apart;
                }
            }
            for (int64_t c = begin; c < end; ++c) {
                const double mean = means[c];
                means[c] *= f.weight;
                variances[c] = f.weight * (variances[c] * per_count);
                squares[c] = means[c] * mean;
            }
        });
    });
    payload[3 * C] = f.weight;
    payload[3 * C + 1] = count;
}

}  // namespace sbnref::cpu
