#include "plan.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

namespace sbnref {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t next_power_of_two(int64_t n) {
    int64_t power = 1;
    while (power < n) power *= 2;
    return power;
}

// How many blocks share a tile's positions. Blocks run in waves of as many as the chip holds, and a block takes as long
// as its rounds of loads plus a constant for starting and for the reduction; for each number of waves only the
// largest split that fits in it can be best.
int64_t choose_splits(int64_t tiles, int64_t rounds, int64_t resident_blocks) {
    constexpr int64_t kOverhead = 2;  // rounds that a block's start and its reduction are worth
    constexpr int64_t kMoreWaves = 3;
    if (tiles > kTickets) return 1;
    const int64_t least_waves = ceil_div(tiles, resident_blocks);
    int64_t best = 1, best_cost = least_waves * (rounds + kOverhead);
    for (int64_t waves = least_waves; waves <= least_waves + kMoreWaves; ++waves) {
        const int64_t splits = std::clamp<int64_t>(waves * resident_blocks / tiles, 1, std::max<int64_t>(rounds, 1));
        const int64_t cost = ceil_div(tiles * splits, resident_blocks) * (ceil_div(rounds, splits) + kOverhead);
        if (cost < best_cost) best = splits, best_cost = cost;
    }
    return best;
}

}  // namespace

Plan make_plan(
    int64_t outer, int64_t channels, int64_t inner, int element_size, int misaligned, bool aligned, int unroll,
    const Device& device) {
    Plan plan{};
    plan.outer = outer, plan.channels = channels, plan.inner = inner;

    const int widest = kAccessBytes / element_size;
    if (inner > 1) {
        const bool whole = aligned && inner % widest == 0;
        plan.layout = whole ? Layout::ChannelsFirst : Layout::ChannelsFirstUnaligned;
        // Runs are cut at the 16-byte boundaries of memory. They start at most `offset` elements past one.
        const int step = static_cast<int>(std::gcd<int64_t>(inner, widest));
        const int offset = whole ? 0 : widest - step + misaligned % step;
        const int64_t columns = ceil_div(inner + offset, widest);
        if (columns > INT32_MAX / 2) throw std::invalid_argument("expected less than 16 GiB per channel and sample");
        plan.vector = widest;
        plan.misaligned = misaligned;
        plan.columns = static_cast<int>(columns);
        plan.lanes = 1;
    } else {
        plan.layout = Layout::ChannelsLast;
        plan.vector = aligned && channels % widest == 0 ? widest : 1;
        plan.columns = 1;
        // 128 bytes of every row to a block: whole cache lines, and few enough channels that the partial results of all
        // blocks stay small.
        const int most_lanes = plan.vector == 1 ? 32 : 8;
        plan.lanes = static_cast<int>(std::min<int64_t>(next_power_of_two(channels / plan.vector), most_lanes));
    }
    plan.tiles = ceil_div(channels, plan.tile_channels());

    const int64_t positions = plan.positions();
    const int least_threads = std::max(32, plan.tile_channels());  // each channel's result is written by its own thread
    const int64_t wanted = next_power_of_two(ceil_div(positions, unroll) * plan.lanes);
    plan.threads = static_cast<int>(std::clamp<int64_t>(wanted, least_threads, device.threads_per_block));
    const int64_t rounds = ceil_div(positions, static_cast<int64_t>(plan.threads / plan.lanes) * unroll);
    const int64_t resident =
        static_cast<int64_t>(device.multiprocessors) * std::max(1, device.threads_per_multiprocessor / plan.threads);
    plan.splits = choose_splits(plan.tiles, rounds, resident);
    plan.split_positions = ceil_div(positions, plan.splits);
    return plan;
}

}  // namespace sbnref
