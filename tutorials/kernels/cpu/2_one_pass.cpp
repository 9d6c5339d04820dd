// Rung 2, one pass: the sums of d = x - pivot and of d^2 give the statistics in one
// pass. The pivot is the channel's first element. The rung reads x twice.
#include <algorithm>

#include "ladder.h"

namespace sbnref::cpu::ladder {

EXPORT void ladder_one_pass(const Problem* problem) {
    const Problem& p = *problem;
    const auto count = static_cast<float>(p.count());
    std::vector<Line> lines;
    for (int64_t c = 0; c < p.C; ++c) {
        const float pivot = p.x[p.row(0, c)];
        float sum = 0, sum_of_squares = 0;
        for (int64_t n = 0; n < p.N; ++n) {
            for (int64_t i = p.row(n, c); i < p.row(n, c) + p.S; ++i) {
                const float deviation = p.x[i] - pivot;
                sum += deviation;
                sum_of_squares += deviation * deviation;
            }
        }
        const float distance = sum / count;  // of the mean from the pivot
        const float mean = pivot + distance;
        const float var = sum_of_squares / count - distance * distance;
        lines.push_back(normalizing(p, c, mean, std::max(0.0f, var)));
    }
    normalize(p, lines);
}

}  // namespace sbnref::cpu::ladder
