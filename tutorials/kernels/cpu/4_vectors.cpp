// Rung 4, vectors: sixteen elements at once. Each sum runs in two chains of additions
// that don't wait for each other.
#include <algorithm>

#include "cpu/lanes.h"
#include "ladder.h"

namespace sbnref::cpu::ladder {
namespace {

constexpr int64_t kLanes = Lanes<float>::kCount;

struct Sums {
    Lanes<float> first, second;

    SBNREF_INLINE void add(const Lanes<float>& deviation) {
        first = first + deviation;
        second = second + deviation * deviation;
    }
};

// Return the sums of the deviations from a center and of their squares, for a block.
SBNREF_INLINE Sums sums(const Problem& p, const Block& b, float about) {
    const Lanes<float> center = all(about);
    Sums even{}, odd{};
    for (int64_t n = b.sample; n < b.sample + b.samples; ++n) {
        const float* const row = p.x + p.row(n, b.channel) + b.element;
        int64_t i = 0;
        for (; i + 2 * kLanes <= b.length; i += 2 * kLanes) {
            even.add(load(row + i) - center);
            odd.add(load(row + i + kLanes) - center);
        }
        for (; i < b.length; i += kLanes) {  // the rest; other rows may follow it
            const int64_t rest = std::min(kLanes, b.length - i);
            even.add(keep(load(row + i, rest, p.x_end()) - center, rest));
        }
    }
    return {even.first + odd.first, even.second + odd.second};
}

}  // namespace

Moments vector_moments(const Problem& p, const Block& b) {
    const auto count = static_cast<double>(b.count());
    const auto center = static_cast<float>(sum(sums(p, b, 0).first) / count);
    const Sums s = sums(p, b, center);
    return about(center, count, sum(s.first), sum(s.second));
}

void vector_normalize(
    const Problem& p, const std::vector<Line>& lines, int64_t begin, int64_t end,
    float* out, const float* out_end) {
    int64_t row = begin / p.S;
    for (int64_t at = begin; at < end; ++row) {
        const Line& line = lines[row % p.C];
        const Lanes<float> center = all(line.center);
        const Lanes<float> scale = all(line.scale), shift = all(line.shift);
        // The last lanes of a row overwrite the start of the next row, which is written
        // later.
        for (const int64_t stop = std::min((row + 1) * p.S, end); at < stop;) {
            const int64_t n = std::min(kLanes, stop - at);
            const Lanes<float> x = load(p.x + at, n, p.x_end());
            store(out, (x - center) * scale + shift, n, out_end);
            at += n, out += n;
        }
    }
}

EXPORT void ladder_vectors(const Problem* problem) {
    const Problem& p = *problem;
    const auto lines = lines_by_blocks(p, vector_moments);
    vector_normalize(p, lines, 0, p.size(), p.y, p.y_end());
}

}  // namespace sbnref::cpu::ladder
