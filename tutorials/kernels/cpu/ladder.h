// The code that the rungs share: the tensor, the line that normalizes a channel, and
// from rung 3 on the blocks of a tensor and their moments. At the end are the functions
// of a rung that later rungs use.
#pragma once

#include <cstdint>
#include <vector>

// A function that Python calls.
#define EXPORT extern "C" __attribute__((visibility("default")))

namespace sbnref::cpu::ladder {

// x and y are (N, C, S), contiguous, with at least one element.
struct Problem {
    int64_t N, C, S;
    int64_t threads;  // from rung 5 on
    double eps;
    const float* x;
    float* y;
    double *mean, *var;  // (C,), also an output

    int64_t count() const { return N * S; }  // per channel
    int64_t size() const { return N * C * S; }
    int64_t row(int64_t n, int64_t c) const { return (n * C + c) * S; }  // row start
    const float* x_end() const { return x + size(); }
    float* y_end() const { return y + size(); }
};

// y = (x - center) * scale + shift, for one channel. The center is the mean rounded to
// a float; the shift holds the rest of the mean.
struct Line {
    float center, scale, shift;

    float operator()(float x) const { return (x - center) * scale + shift; }
};

Line normalizing(const Problem& p, int64_t channel, double mean, double var);
void normalize(const Problem& p, const std::vector<Line>& lines);  // element by element

// ---- from rung 3 on ----

// At most kBlock elements of a channel: a piece of a long row, or some short rows.
struct Block {
    int64_t sample, samples;  // the first, and their number
    int64_t channel;
    int64_t element, length;  // likewise, in each row

    int64_t count() const { return samples * length; }
};

constexpr int64_t kBlock = 4096;  // 16 KiB: half of the L1 cache of most CPUs
constexpr int64_t kMostRows = 64;

// The blocks of a tensor. They depend only on its shape, and are in the order of memory
// except for the rows of a block.
struct Cut {
    explicit Cut(const Problem& p);
    int64_t blocks() const { return groups * C * pieces; }
    Block block(int64_t i) const;

    int64_t N, C, S;
    int64_t rows, groups;    // rows in a block; blocks one after another
    int64_t length, pieces;  // elements of a row in a block; blocks in a row
};

// The moments of a set of numbers.
struct Moments {
    double count = 0, mean = 0;
    double squares = 0;  // sum of (x - mean)^2
};

Moments about(float center, double count, double sum, double sum_of_squares);
Moments merge(const Moments& a, const Moments& b);  // Chan's formula
std::vector<Line> lines(const Problem& p, const std::vector<Moments>& of_channel);

// Compute the moments block by block, and merge them by channel.
template <typename F>
std::vector<Line> lines_by_blocks(const Problem& p, const F& moments_of_block) {
    const Cut cut(p);
    std::vector<Moments> of_channel(p.C);
    for (int64_t i = 0; i < cut.blocks(); ++i) {
        const Block block = cut.block(i);
        Moments& channel = of_channel[block.channel];
        channel = merge(channel, moments_of_block(p, block));
    }
    return lines(p, of_channel);
}

// ---- for rungs 5 and 6, from earlier rungs ----

// Rung 4: the moments of a block, in vectors.
Moments vector_moments(const Problem& p, const Block& block);

// Rung 4: compute y from element `begin` to `end` in vectors and store it at `out`. May
// overwrite the elements between the end of y and out_end.
void vector_normalize(
    const Problem& p, const std::vector<Line>& lines, int64_t begin, int64_t end,
    float* out, const float* out_end);

// Rung 5: the lines of all channels, by threads.
std::vector<Line> threaded_lines(const Problem& p);

constexpr int64_t kChunk = 2048;  // elements of y that a thread computes at a time

}  // namespace sbnref::cpu::ladder
