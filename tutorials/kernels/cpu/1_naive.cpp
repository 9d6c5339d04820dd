// Rung 1, naive: the formula, word by word. One pass computes the means, one computes
// the variances, and one normalizes, channel by channel. It reads x three times.
#include "ladder.h"

namespace sbnref::cpu::ladder {

EXPORT void ladder_naive(const Problem* problem) {
    const Problem& p = *problem;
    const auto count = static_cast<float>(p.count());
    std::vector<float> mean(p.C);
    for (int64_t c = 0; c < p.C; ++c) {
        float sum = 0;
        for (int64_t n = 0; n < p.N; ++n)
            for (int64_t i = p.row(n, c); i < p.row(n, c) + p.S; ++i) sum += p.x[i];
        mean[c] = sum / count;
    }
    std::vector<Line> lines;
    for (int64_t c = 0; c < p.C; ++c) {
        float sum = 0;
        for (int64_t n = 0; n < p.N; ++n) {
            for (int64_t i = p.row(n, c); i < p.row(n, c) + p.S; ++i) {
                const float deviation = p.x[i] - mean[c];
                sum += deviation * deviation;
            }
        }
        lines.push_back(normalizing(p, c, mean[c], sum / count));
    }
    normalize(p, lines);
}

}  // namespace sbnref::cpu::ladder
