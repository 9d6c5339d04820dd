// Two sums per channel, for the stages that reduce.
//
// The tensor is cut into blocks by its shape alone, not by the number of threads. A block gives two float64 numbers for
// each of its channels, and the blocks are combined in a fixed order, so the result does not depend on the number of
// threads.
//
//   rows      (inner > 1)   Long rows are cut into pieces that fit in L1. A block of short rows has neighbouring
//                           channels of many samples. Every channel keeps its lanes of sums, so the overhead of a row
//                           is small.
//   columns   (inner == 1)  Every column has its sums, in arrays that fit in L1. Four lines are added at a time, so the
//                           sums are loaded and stored once for four lines. With few channels, a line is several
//                           rows.
//
// A stage defines the terms to sum, about a center per channel:
//
//   Terms<A> terms(Load load, const Lanes<A>& center)   load(p) gives the lanes of a tensor p at the current place
//   A center(channel)                                   optional; without it, the block finds its center itself
#pragma once

#include "stages.h"

namespace sbnref::cpu {

template <typename Stage>
constexpr bool kSearches = !requires(const Stage& stage) { stage.center(int64_t{}); };

struct Pair {
    double first, second;
};

template <typename A>
struct Terms {
    Lanes<A> first, second;
};

template <typename A>
SBNREF_INLINE Terms<A> operator+(const Terms<A>& a, const Terms<A>& b) {
    return {a.first + b.first, a.second + b.second};
}

// The results of the blocks.
struct Partials {
    Partials(int64_t groups, int64_t channels) : channels(channels), counts(groups), pairs(groups * channels) {}

    int64_t groups() const { return static_cast<int64_t>(counts.size()); }
    Pair& at(int64_t group, int64_t channel) { return pairs[group * channels + channel]; }

    int64_t channels;
    std::vector<double> counts;  // (groups,) elements per channel
    std::vector<Pair> pairs;     // (groups, channels)
};

// ---- finding a center ----

// Sums of squares are taken about a center near the mean, so that little cancels. A block guesses a center from its
// first elements. If these differ from the rest (an outlier, the edge of an image), it reads the channel once more,
// about the mean that is now known. If all elements are about equally far from the center, every addition may be
// rounded in the same direction: the error of the mean then grows with the distance times the number of additions in a
// row. So with fewer additions in a row, a larger distance is allowed.

// Whether center and mean are more than `most` standard deviations apart, by [sum d, sum d^2].
inline bool off_center(const Pair& sums, double per_count, double most) {
    const double of_distance = sums.first * sums.first * per_count;
    return of_distance > (sums.second - of_distance) * (most * most);
}

// ---- rows ----

constexpr int64_t kPiece = 4096;   // elements of a channel in a block, about
constexpr int64_t kMostRows = 64;  // channels in a block
constexpr int64_t kMostSamples = 64;
constexpr int64_t kRun = 512;         // elements of a row that are summed before their sum is added to other sums
constexpr int64_t kGuess = 64;        // elements to guess a center from
constexpr double kRowDistance = 0.5;  // see off_center: up to 64 additions in a row

struct RowBlock {
    int64_t group;              // index among the blocks that share a channel
    int64_t sample, samples;    // the first, and their number
    int64_t channel, channels;  // likewise
    int64_t element, length;    // likewise, of each row
    double count() const { return static_cast<double>(samples * length); }
};

struct RowCut {
    explicit RowCut(const Shape& s) : shape(s) {
        segments = ceil_div(shape.inner, kPiece);
        length = ceil_div(ceil_div(shape.inner, segments), kLanesBytes) * kLanesBytes;
        segments = ceil_div(shape.inner, length);
        const int64_t most_samples = std::clamp<int64_t>(kPiece / shape.inner, 1, kMostSamples);
        sample_groups = ceil_div(shape.outer, most_samples);
        samples = sample_groups == 0 ? 1 : ceil_div(shape.outer, sample_groups);
        sample_groups = ceil_div(shape.outer, samples);
        channels = std::clamp<int64_t>(kPiece / 2 / shape.inner, 1, kMostRows);
        channel_groups = ceil_div(shape.channels, channels);
    }

    int64_t blocks() const { return sample_groups * channel_groups * segments; }
    int64_t groups() const { return sample_groups * segments; }

    RowBlock block(int64_t i) const {  // in the order of memory, except for the samples of a block
        const int64_t segment = i % segments, c = i / segments % channel_groups, n = i / segments / channel_groups;
        const auto rest = [](int64_t size, int64_t begin, int64_t most) { return std::min(size - begin, most); };
        return {
            n * segments + segment,
            n * samples,
            rest(shape.outer, n * samples, samples),
            c * channels,
            rest(shape.channels, c * channels, channels),
            segment * length,
            rest(shape.inner, segment * length, length)};
    }

    Shape shape;
    int64_t segments, length, sample_groups, samples, channel_groups, channels;
};

// The sum of the terms of elements at to at + length, all about one center. At most a run.
template <typename Stage, typename A = typename Stage::A>
SBNREF_INLINE Terms<A> sum_of_run(const Stage& stage, int64_t at, int64_t length, const Lanes<A>& center) {
    constexpr int64_t K = Lanes<A>::kCount;
    const auto terms = [&](int64_t i) __attribute__((always_inline)) {
        return stage.terms([&](auto p) { return load(p.data + at + i); }, center);
    };
    Terms<A> even{}, odd{};  // two independent chains of additions, to hide their latency
    int64_t i = 0;
    for (; i + 2 * K <= length; i += 2 * K) {
        even = even + terms(i);
        odd = odd + terms(i + K);
    }
    if (i + K <= length) {
        even = even + terms(i);
        i += K;
    }
    if (const int64_t rest = length - i; rest > 0) {
        const Terms<A> t = stage.terms([&](auto p) { return load(p.data + at + i, rest, p.end()); }, center);
        odd = odd + Terms<A>{keep(t.first, rest), keep(t.second, rest)};
    }
    return even + odd;
}

template <typename Stage>
Partials reduce_rows(const Shape& shape, const Stage& stage) {
    using A = typename Stage::A;
    const RowCut cut(shape);
    Partials partials(cut.groups(), shape.channels);
    const int64_t grain = ceil_div(cut.blocks() * kLeastWork, shape.size());
    in_parallel(cut.blocks(), grain, [&](int64_t begin, int64_t end) {
        Terms<A> sums[kMostRows];
        A centers[kMostRows];
        for (int64_t i = begin; i < end; ++i) {
            const RowBlock block = cut.block(i);
            const double count = block.count(), per_count = 1 / count;
            const auto row = [&](int64_t sample, int64_t k) {
                return ((block.sample + sample) * shape.channels + block.channel + k) * shape.inner + block.element;
            };
            const auto add = [&](int64_t k, int64_t last) {
                std::fill(sums + k, sums + last, Terms<A>{});
                for (int64_t sample = 0; sample < block.samples; ++sample)
                    for (int64_t j = k; j < last; ++j)
                        for (int64_t i = 0; i < block.length; i += kRun)
                            sums[j] = sums[j] +
                                      sum_of_run(
                                          stage, row(sample, j) + i, std::min(block.length - i, kRun), all(centers[j]));
            };
            const auto added = [&](int64_t k) { return Pair{sum(sums[k].first), sum(sums[k].second)}; };

            for (int64_t k = 0; k < block.channels; ++k) {
                if constexpr (kSearches<Stage>) {
                    const int64_t some = std::min(block.length, kGuess);
                    centers[k] = static_cast<A>(sum(sum_of_run(stage, row(0, k), some, all(A{})).first) / some);
                } else {
                    centers[k] = stage.center(block.channel + k);
                }
            }
            add(0, block.channels);
            for (int64_t k = 0; k < block.channels; ++k) {
                Pair pair = added(k);
                if (kSearches<Stage> && off_center(pair, per_count, kRowDistance)) {
                    centers[k] = static_cast<A>(centers[k] + pair.first * per_count);
                    add(k, k + 1);
                    pair = added(k);
                }
                partials.at(block.group, block.channel + k) = stage.partial(pair, per_count, centers[k]);
            }
            if (block.channel == 0) partials.counts[block.group] = count;
        }
    });
    return partials;
}

// ---- columns ----

template <typename A>
constexpr int64_t kMostColumns = 4096 / sizeof(A);
constexpr int64_t kColumnUnit = 64;  // whole lanes, four at a time: see add_lines
static_assert(kMostColumns<double> % kColumnUnit == 0);
constexpr int64_t kBlockLines = 128;
constexpr int64_t kGuessRows = 24;     // to guess centers from
constexpr double kColumnDistance = 1;  // see off_center: 32 additions in a row
constexpr int64_t kLinesAhead = 4;     // lines to prefetch

struct ColumnCut {
    ColumnCut(const Shape& s, int64_t most) : shape(s) {
        const int64_t C = shape.channels;
        repeats = std::max<int64_t>(most / C, 1);
        tiles = ceil_div(C, most);
        channels = tiles == 1 ? C : ceil_div(ceil_div(C, tiles), kColumnUnit) * kColumnUnit;
        tiles = ceil_div(C, channels);
        rows = repeats * kBlockLines;
        groups = ceil_div(shape.outer, rows);
    }
    int64_t blocks() const { return groups * tiles; }

    Shape shape;
    int64_t repeats;   // rows in a line
    int64_t tiles;     // blocks side by side
    int64_t channels;  // in a tile
    int64_t rows;      // in a block
    int64_t groups;    // blocks one after another
};

// Adds R lines of the tensor, `stride` elements apart, to the sums of their columns.
template <int R, typename Stage, typename A = typename Stage::A>
SBNREF_INLINE void add_lines(
    const Stage& stage, int64_t at, int64_t stride, int64_t width, const A* centers, A* sum_first, A* sum_second) {
    constexpr int64_t K = Lanes<A>::kCount;
    // Prefetch in the order of memory, a whole line and then the next one, which suits caches best. The lines
    // themselves are added side by side.
    int64_t ahead = at + kLinesAhead * stride, ahead_column = 0;
    const auto add = [&](int64_t column, const auto& load_at, const auto& kept) __attribute__((always_inline)) {
        const Lanes<A> center = load(centers + column);
        const auto line = [&](int r) __attribute__((always_inline)) {
            const int64_t place = at + r * stride + column;
            return stage.terms(
                [&](auto p) {
                    __builtin_prefetch(p.data + ahead + r * K);
                    return load_at(p, place);
                },
                center);
        };
        Terms<A> sums = line(0);
#pragma GCC unroll 4
        for (int r = 1; r < R; ++r) sums = sums + line(r);
        store(sum_first + column, load(sum_first + column) + kept(sums.first));
        store(sum_second + column, load(sum_second + column) + kept(sums.second));
        ahead += R * K;
        ahead_column += R * K;
        if (ahead_column >= width) {
            ahead += stride - ahead_column;
            ahead_column = 0;
        }
    };
    int64_t column = 0;
    for (; column + K <= width; column += K)
        add(column, [](auto p, int64_t i) { return load(p.data + i); }, [](const Lanes<A>& lanes) { return lanes; });
    if (const int64_t rest = width - column; rest > 0)
        add(
            column, [&](auto p, int64_t i) { return load(p.data + i, rest, p.end()); },
            [&](const Lanes<A>& lanes) { return keep(lanes, rest); });
}

template <typename Stage>
Partials reduce_columns(const Shape& shape, const Stage& stage) {
    using A = typename Stage::A;
    const ColumnCut cut(shape, kMostColumns<A>);
    const int64_t C = shape.channels;
    Partials partials(cut.groups, C);
    const int64_t grain = ceil_div(cut.blocks() * kLeastWork, std::max<int64_t>(shape.size(), 1));
    in_parallel(cut.blocks(), grain, [&](int64_t begin, int64_t end) {
        constexpr int64_t room = kMostColumns<A> + Lanes<A>::kCount;
        alignas(kLanesBytes) A centers[room], sum_first[room], sum_second[room];
        double first[kMostColumns<A>], second[kMostColumns<A>];
        for (int64_t i = begin; i < end; ++i) {
            const int64_t group = i / cut.tiles, channel = i % cut.tiles * cut.channels;
            const int64_t channels = std::min(cut.channels, C - channel);
            const int64_t row = group * cut.rows, rows = std::min(cut.rows, shape.outer - row);
            const int64_t at = row * C + channel, width = channels * cut.repeats, stride = C * cut.repeats;

            const auto add = [&](int64_t rows) {
                std::fill(sum_first, sum_first + room, A{});
                std::fill(sum_second, sum_second + room, A{});
                const int64_t lines = rows / cut.repeats;
                int64_t line = 0;
                for (; line + 4 <= lines; line += 4)
                    add_lines<4>(stage, at + line * stride, stride, width, centers, sum_first, sum_second);
                for (; line < lines; ++line)
                    add_lines<1>(stage, at + line * stride, stride, width, centers, sum_first, sum_second);
                if (const int64_t rest = rows % cut.repeats; rest > 0)
                    add_lines<1>(stage, at + line * stride, 0, channels * rest, centers, sum_first, sum_second);
            };
            // Add up the columns of the same channel into first and second.
            const auto fold = [&] {
                std::copy_n(sum_first, channels, first);
                std::copy_n(sum_second, channels, second);
                for (int64_t column = channels; column < width; column += channels) {
                    for (int64_t k = 0; k < channels; ++k) first[k] += sum_first[column + k];
                    for (int64_t k = 0; k < channels; ++k) second[k] += sum_second[column + k];
                }
            };
            const auto repeat_centers = [&] {
                for (int64_t column = channels; column < width; ++column) centers[column] = centers[column - channels];
            };

            if constexpr (kSearches<Stage>) {
                const int64_t some = std::min(rows, ceil_div(kGuessRows, cut.repeats) * cut.repeats);
                std::fill(centers, centers + room, A{});
                add(some);
                fold();
                for (int64_t k = 0; k < channels; ++k) centers[k] = static_cast<A>(first[k] * (1.0 / some));
            } else {
                for (int64_t k = 0; k < channels; ++k) centers[k] = stage.center(channel + k);
            }
            repeat_centers();
            add(rows);
            fold();
            const double per_row = 1.0 / rows;
            if constexpr (kSearches<Stage>) {
                int again = 0;
                for (int64_t k = 0; k < channels; ++k)
                    again |= off_center({first[k], second[k]}, per_row, kColumnDistance);
                if (again) {
                    for (int64_t k = 0; k < channels; ++k) centers[k] = static_cast<A>(centers[k] + first[k] * per_row);
                    repeat_centers();
                    add(rows);
                    fold();
                }
            }
            Pair* const left = &partials.at(group, channel);
            for (int64_t k = 0; k < channels; ++k) left[k] = stage.partial({first[k], second[k]}, per_row, centers[k]);
            if (channel == 0) partials.counts[group] = rows;
        }
    });
    return partials;
}

template <typename Stage>
Partials reduce(const Shape& shape, const Stage& stage) {
    return shape.inner > 1 ? reduce_rows(shape, stage) : reduce_columns(shape, stage);
}

}  // namespace sbnref::cpu
