// Sums over the threads of a block, and over the blocks that share a channel, in an order that never changes.
#pragma once

#include "walk.cuh"

namespace sbnref {

// Every stage that reduces needs two sums per channel. They are float64 from the end of a thread's own part on.
struct Pair {
    double first, second;
};

__device__ inline Pair operator+(const Pair& a, const Pair& b) { return {a.first + b.first, a.second + b.second}; }

__device__ inline Pair shuffle_down(const Pair& pair, int lanes) {
    return {__shfl_down_sync(~0u, pair.first, lanes), __shfl_down_sync(~0u, pair.second, lanes)};
}

// Shared memory that sum_over_block needs.
inline int64_t scratch_bytes(const Plan& plan) {
    return plan.threads / kWarp * plan.tile_channels() * static_cast<int64_t>(sizeof(Pair));
}

// Adds up what all threads of the block have for the same channel: mine(k) for the k-th of a thread's K channels. The
// result for channel t of the tile is returned to thread t.
template <int K, typename Mine>
__device__ Pair sum_over_block(const Plan& plan, const Place& place, const Mine& mine, SharedArray<Pair> scratch) {
    const int tile_channels = plan.tile_channels();
    const int warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp;
#pragma unroll
    for (int k = 0; k < K; ++k) {
        Pair sum = mine(k);
        for (int offset = kWarp / 2; offset >= plan.lanes; offset /= 2)  // threads `lanes` apart hold the same channels
            sum = sum + shuffle_down(sum, offset);
        if (static_cast<int>(threadIdx.x) % kWarp < plan.lanes)
            scratch[warp * tile_channels + place.lane * K + k] = sum;
    }
    __syncthreads();
    Pair sum{0, 0};
    if (static_cast<int>(threadIdx.x) < tile_channels)
        for (int w = 0; w < warps; ++w) sum = sum + Pair(scratch[w * tile_channels + threadIdx.x]);
    __syncthreads();  // scratch may be written again
    return sum;
}

// Adds up over all blocks of the tile. Each leaves its sums in `partials` and takes a ticket; the one that takes the
// last finds all of them there. Returns whether this is that block; only then thread t has the sum of channel t.
template <int K, typename Mine>
__device__ bool sum_over_tile(
    const Plan& plan, const Place& place, const Mine& mine, Pair& sum, SharedArray<Pair> scratch,
    Array<double> partials,   // (tiles, splits, tile_channels, 2)
    Array<unsigned> tickets)  // (kTickets,)
{
    sum = sum_over_block<K>(plan, place, mine, scratch);
    if (plan.splits == 1) return true;

    const int tile_channels = plan.tile_channels();
    const auto partial = [&](int64_t split, int channel) {
        return ((place.tile * plan.splits + split) * tile_channels + channel) * 2;
    };
    if (static_cast<int>(threadIdx.x) < tile_channels)
        store_vector<2>(partials, partial(place.split, threadIdx.x), Vector<double, 2>{{sum.first, sum.second}});
    __threadfence();  // the partial sums are seen before the ticket is
    __syncthreads();
    const unsigned last = static_cast<unsigned>(plan.splits) - 1;
    if (!__syncthreads_or(threadIdx.x == 0 && take_ticket(tickets, place.tile, last) == last)) return false;
    __threadfence();

    const auto of_all_splits = [&](int k) {
        Pair sum{0, 0};
        for (int64_t split = place.row; split < plan.splits; split += place.rows) {
            const Array<const double> all{partials.data, partials.size};
            const Vector<double, 2> other = load_vector<2>(all, partial(split, place.lane * K + k));
            sum = sum + Pair{other.at[0], other.at[1]};
        }
        return sum;
    };
    sum = sum_over_block<K>(plan, place, of_all_splits, scratch);
    return true;
}

}  // namespace sbnref
