// Stage 4: dx and, if needed, dgamma and dbeta.  Reads dy and x once, writes dx once.
//
// dx = gamma / sigma { g - k/D [A + xhat B - skew B] }, collected per channel as dx = scale g - (slope (x - hi) +
// offset).
#include "apply.h"

namespace sbnref::cpu {
namespace {

template <typename T>
struct Differentiate {
    Array<const T> dy, x;

    template <typename Load, typename Lanes>
    SBNREF_INLINE Lanes map(const Load& load, const Lanes (&c)[4]) const {
        const auto& [hi, scale, slope, offset] = c;
        return load(dy) * scale - ((load(x) - hi) * slope + offset);
    }
};

}  // namespace

void backward_apply(const Shape& shape, const BackwardApply& b) {
    const int64_t C = shape.channels;
    const double *const total = as<double>(b.total), *const saved = as<double>(b.saved);
    dispatch(b.x.dtype, [&](auto* typed) {
        using T = std::remove_pointer_t<decltype(typed)>;
        using A = Accumulator<T>;
        Coefficients<A, 4> coefficients(shape);
        for_channels(C, [&](int64_t c) {
            const double sum_g = total[c], sum_gx = total[C + c];
            const Split<A> mean(saved[c]);
            const double invstd = saved[C + c], skew = saved[2 * C + c];
            const double k = b.k * saved[3 * C + c];  // the weight of one element in the mean
            const double scale = b.gamma.data ? load_channel(b.gamma, c) * invstd : invstd;
            const double slope = scale * k * sum_gx * invstd;
            const double offset = scale * k * (sum_g - (mean.lo * invstd + skew) * sum_gx);
            coefficients.set(c, {mean.hi, static_cast<A>(scale), static_cast<A>(slope), static_cast<A>(offset)});
            if (b.dgamma.data) store_channel(b.dgamma, c, sum_gx / b.ranks);
            if (b.dbeta.data) store_channel(b.dbeta, c, sum_g / b.ranks);
        });
        apply(shape, Differentiate<T>{elements<const T>(b.dy), elements<const T>(b.x)}, coefficients, as<T>(b.dx));
    });
}

}  // namespace sbnref::cpu
