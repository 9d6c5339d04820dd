#include "plan.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

namespace sbnref {
namespace {

constexpr int kLineBytes = 128;   // of the cache
constexpr int kSectorBytes = 32;  // that memory moves at once
constexpr int kFewThreads = 128;  // a block with no more is not made smaller

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t next_power_of_two(int64_t n) {
    int64_t power = 1;
    while (power < n) power *= 2;
    return power;
}

// How many blocks share a tile, and the cost of such a launch in rounds.
struct Share {
    int64_t splits, cost;
};

// The number of blocks that share a tile's positions. Blocks run in waves that fill the chip, and a block takes as long
// as its rounds of loads plus a constant for its start and its reduction. For each number of waves only the largest
// split that fits can be the best.
Share choose_splits(int64_t tiles, int64_t rounds, int64_t resident_blocks) {
    constexpr int64_t kOverhead = 2;  // a block's start and its reduction, in rounds
    constexpr int64_t kMoreWaves = 3;
    const int64_t least_waves = ceil_div(tiles, resident_blocks);
    Share best{1, least_waves * (rounds + kOverhead)};
    if (tiles > kTickets) return best;
    for (int64_t waves = least_waves; waves <= least_waves + kMoreWaves; ++waves) {
        const int64_t splits = std::clamp<int64_t>(waves * resident_blocks / tiles, 1, std::max<int64_t>(rounds, 1));
        const int64_t cost = ceil_div(tiles * splits, resident_blocks) * (ceil_div(rounds, splits) + kOverhead);
        if (cost < best.cost) best = {splits, cost};
    }
    return best;
}

// The largest power of two, up to `most`, that divides n.
int widest_that_divides(int64_t n, int most) { return static_cast<int>(std::gcd<int64_t>(n, most)); }

void plan_channels_first(Plan& plan, int widest) {
    // Runs start on multiples of `step`, so the first 16-byte boundary in one is at most widest - step elements away.
    const int step = widest_that_divides(plan.inner, widest);
    const int64_t columns = std::max<int64_t>(plan.inner - (widest - step), 0) / widest;
    if (columns > INT32_MAX / 2) throw std::invalid_argument("expected less than 16 GiB per channel and sample");
    plan.layout = Layout::ChannelsFirst;
    plan.vector = widest;
    plan.tile_channels = plan.lanes = 1;
    plan.body.columns = static_cast<int>(columns);
    plan.edges.columns = static_cast<int>(plan.inner - columns * widest);
    plan.body.positions = plan.outer * plan.body.columns;
    plan.edges.positions = plan.outer * plan.edges.columns;
}

// Whether the runs of neighbouring channels together make whole accesses, each to at most two channels, and no more
// accesses than threads. Then the channels of a thread's elements are the same in every row. A tile's part of a row
// fills cache lines.
bool plan_short_runs(Plan& plan, int widest, int element_size, const Device& device) {
    const int step = widest_that_divides(plan.inner, widest);
    const int64_t together = widest / step, bytes = together * plan.inner * element_size;
    if (plan.inner == 1 || plan.channels % together != 0 || widest > plan.inner + step) return false;
    if (together == 1 && bytes >= kLineBytes) return false;
    const int64_t tile = std::min(together * ceil_div(kLineBytes, bytes), plan.channels);
    const int64_t columns = tile * plan.inner / widest;
    if (tile > kMaxTileChannels || columns > device.threads_per_block) return false;
    plan.layout = Layout::ShortRuns;
    plan.vector = widest;
    plan.lanes = static_cast<int>(columns);
    plan.tile_channels = static_cast<int>(tile);
    return true;
}

void plan_channels_last(Plan& plan, int widest, int element_size) {
    plan.layout = Layout::ChannelsLast;
    plan.vector = widest_that_divides(plan.channels, widest);
    // A block gets only one cache line of every row, so that the partial results of all blocks stay small. The threads
    // of a warp read one row or several. Tiles are as narrow as their number allows, but begin and end where sectors do
    // if rows do.
    const int bytes = plan.vector * element_size, most_lanes = std::min(kLineBytes / bytes, kWarp);
    const int64_t columns = plan.channels / plan.vector, tiles = ceil_div(columns, most_lanes);
    const int aligned = widest_that_divides(columns, kSectorBytes / bytes);
    plan.lanes = static_cast<int>(ceil_div(columns, tiles * aligned) * aligned);
    plan.tile_channels = plan.lanes * plan.vector;
}

}  // namespace

Plan make_plan(int64_t outer, int64_t channels, int64_t inner, int element_size, int unroll, const Device& device) {
    Plan plan{};
    plan.outer = outer, plan.channels = channels, plan.inner = inner, plan.row = channels * inner;
    plan.body.positions = outer;  // if a position is a row
    const int widest = kAccessBytes / element_size;
    if (inner == 1)
        plan_channels_last(plan, widest, element_size);
    else if (!plan_short_runs(plan, widest, element_size, device))
        plan_channels_first(plan, widest);
    plan.tiles = ceil_div(channels, plan.tile_channels);

    // Enough threads for the tile's work, and at least one for each channel's result. Fewer, if there are more tiles
    // than the chip holds of such blocks and smaller blocks cost less.
    const int64_t positions = std::max(plan.body.positions, plan.edges.positions);
    const int64_t at_once = in_flight(plan.layout, unroll, plan.vector, element_size);
    const int64_t busy = ceil_div(positions, at_once);
    const int64_t wanted = plan.layout == Layout::ShortRuns ? busy : next_power_of_two(busy);
    Share best{1, INT64_MAX};
    for (int64_t rows = std::clamp<int64_t>(wanted, 1, device.threads_per_block / plan.lanes);; rows /= 2) {
        const int64_t warps = std::max(ceil_div(rows * plan.lanes, kWarp), ceil_div(plan.tile_channels, kWarp));
        const int threads = static_cast<int>(warps * kWarp);
        const int64_t rounds = ceil_div(positions, threads / plan.lanes * at_once);
        const int64_t resident =
            static_cast<int64_t>(device.multiprocessors) * std::max(1, device.threads_per_multiprocessor / threads);
        const Share share = choose_splits(plan.tiles, rounds, resident);
        if (share.cost < best.cost) best = share, plan.threads = threads;
        if (plan.tiles <= resident || threads <= kFewThreads || rows == 1) break;
    }
    plan.splits = best.splits;
    for (Traversal* traversal : {&plan.body, &plan.edges}) {
        traversal->split_positions = ceil_div(traversal->positions, plan.splits);
        const int columns = std::max(traversal->columns, 1);
        traversal->step = plan.rows() / columns * plan.row;
        traversal->column_step = plan.rows() % columns;
    }
    return plan;
}

}  // namespace sbnref
