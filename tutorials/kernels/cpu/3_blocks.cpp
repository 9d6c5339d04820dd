// Rung 3, blocks: two passes over a block that stays in L1 give its mean and then the
// deviations from it. Blocks are merged in float64. The rung reads memory twice.
#include "ladder.h"

namespace sbnref::cpu::ladder {
namespace {

template <typename F>
void for_each(const Problem& p, const Block& b, const F& f) {
    for (int64_t n = b.sample; n < b.sample + b.samples; ++n) {
        const float* const row = p.x + p.row(n, b.channel) + b.element;
        for (int64_t i = 0; i < b.length; ++i) f(row[i]);
    }
}

Moments moments(const Problem& p, const Block& b) {
    float sum = 0;
    for_each(p, b, [&](float x) { sum += x; });
    const float center = sum / static_cast<float>(b.count());

    // The mean is rounded; the first sum holds the rest.
    float first = 0, second = 0;
    for_each(p, b, [&](float x) {
        const float deviation = x - center;
        first += deviation;
        second += deviation * deviation;
    });
    return about(center, static_cast<double>(b.count()), first, second);
}

}  // namespace

EXPORT void ladder_blocks(const Problem* problem) {
    const Problem& p = *problem;
    normalize(p, lines_by_blocks(p, moments));
}

}  // namespace sbnref::cpu::ladder
