// Stage 3: the sums for the gradient.  Reads dy and x once; writes 2C numbers.
//
// sum g and sum g (x - hi) in lanes block by block, then in float64 over the blocks. xhat appears only at the end, when
// the sums are known: sum g xhat = (sum g (x - hi) - lo sum g) / sigma.
#include "reduce.h"

namespace sbnref::cpu {
namespace {

template <typename T>
struct Gradients {
    using A = Accumulator<T>;

    Array<const T> dy, x;
    const double* means;  // (C,)

    A center(int64_t channel) const { return Split<A>(means[channel]).hi; }

    template <typename Load>
    SBNREF_INLINE Terms<A> terms(const Load& load, const Lanes<A>& hi) const {
        const Lanes<A> g = load(dy);
        return {g, g * (load(x) - hi)};
    }

    static Pair partial(const Pair& sums, double, A) { return sums; }
};

}  // namespace

void backward_stats(const Shape& shape, const BackwardStats& b) {
    const int64_t C = shape.channels;
    const double *const means = as<double>(b.saved), *const invstds = means + C;
    double *const sum_g = as<double>(b.payload), *const sum_gx = sum_g + C;
    dispatch(b.x.dtype, [&](auto* typed) {
        using T = std::remove_pointer_t<decltype(typed)>;
        Partials partials = reduce(shape, Gradients<T>{elements<const T>(b.dy), elements<const T>(b.x), means});
        in_parallel(C, ceil_div(kLeastWork, partials.groups() + 1), [&](int64_t begin, int64_t end) {
            std::fill(sum_g + begin, sum_g + end, 0.0);
            std::fill(sum_gx + begin, sum_gx + end, 0.0);
            for (int64_t g = 0; g < partials.groups(); ++g) {
                for (int64_t c = begin; c < end; ++c) {
                    sum_g[c] += partials.at(g, c).first;
                    sum_gx[c] += partials.at(g, c).second;
                }
            }
            for (int64_t c = begin; c < end; ++c)
                sum_gx[c] = (sum_gx[c] - Split<Accumulator<T>>(means[c]).lo * sum_g[c]) * invstds[c];
        });
    });
}

}  // namespace sbnref::cpu
