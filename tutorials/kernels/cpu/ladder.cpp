#include "ladder.h"

#include <algorithm>
#include <cmath>

namespace sbnref::cpu::ladder {

Line normalizing(const Problem& p, int64_t channel, double mean, double var) {
    p.mean[channel] = mean;
    p.var[channel] = var;
    const double invstd = 1 / std::sqrt(var + p.eps);
    const auto center = static_cast<float>(mean);
    const double lost = mean - center;
    return {center, static_cast<float>(invstd), static_cast<float>(-lost * invstd)};
}

void normalize(const Problem& p, const std::vector<Line>& lines) {
    for (int64_t n = 0; n < p.N; ++n) {
        for (int64_t c = 0; c < p.C; ++c) {
            const Line line = lines[c];
            const int64_t row = p.row(n, c);
            for (int64_t i = row; i < row + p.S; ++i) p.y[i] = line(p.x[i]);
        }
    }
}

// ---- from rung 3 on ----

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

Cut::Cut(const Problem& p) : N(p.N), C(p.C), S(p.S) {
    rows = std::clamp<int64_t>(kBlock / S, 1, kMostRows);
    groups = ceil_div(N, rows);
    length = std::min(S, kBlock);
    pieces = ceil_div(S, length);
}

Block Cut::block(int64_t i) const {
    const int64_t sample = i / pieces / C * rows, element = i % pieces * length;
    return {
        sample,  std::min(rows, N - sample),    i / pieces % C,
        element, std::min(length, S - element),
    };
}

// Return moments from the sums of deviations d = x - center and of their squares.
Moments about(float center, double count, double sum, double sum_of_squares) {
    const double distance = sum / count;  // of the mean from the center
    return {count, center + distance, std::max(0.0, sum_of_squares - sum * distance)};
}

Moments merge(const Moments& a, const Moments& b) {
    const double count = a.count + b.count, fraction = b.count / count;
    const double apart = b.mean - a.mean;
    return {
        count, a.mean + apart * fraction,
        a.squares + b.squares + apart * apart * a.count * fraction};
}

std::vector<Line> lines(const Problem& p, const std::vector<Moments>& of_channel) {
    std::vector<Line> lines;
    for (int64_t c = 0; c < p.C; ++c) {
        const Moments& m = of_channel[c];
        lines.push_back(normalizing(p, c, m.mean, m.squares / m.count));
    }
    return lines;
}

}  // namespace sbnref::cpu::ladder
