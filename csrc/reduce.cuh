// Sums over the threads of a block, and over the blocks that share a tile, in a fixed order.
#pragma once

#include "walk.cuh"

namespace sbnref {

// Every reducing stage needs two sums per channel. They are float64 once a thread has finished its own part.
struct Pair {
    double first, second;
};

__device__ inline Pair operator+(const Pair& a, const Pair& b) { return {a.first + b.first, a.second + b.second}; }

__device__ inline Pair shuffle_down(const Pair& pair, int lanes) {
    return {__shfl_down_sync(~0u, pair.first, lanes), __shfl_down_sync(~0u, pair.second, lanes)};
}

// The shared memory of a reduction, for either of the two ways below.
inline int64_t scratch_bytes(const Plan& plan) {
    const int pairs = plan.layout == Layout::ShortRuns ? 2 * plan.threads + plan.tile_channels
                                                       : plan.threads / kWarp * plan.tile_channels;
    return pairs * static_cast<int64_t>(sizeof(Pair));
}

// Adds up the values of all threads of the block for the same channel. mine(k) is the value for the k-th of a thread's
// K channels; `lanes` threads side by side, at most a warp, have different channels. Thread t gets the result of
// channel t of the tile.
template <int K, typename Mine>
__device__ Pair sum_by_lanes(const Plan& plan, const Place& place, const Mine& mine, Pair* scratch) {
    const int tile_channels = plan.tile_channels;
    const int warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp, in_warp = threadIdx.x % kWarp;
    int furthest = plan.lanes;  // threads `lanes` apart hold the same channels
    while (furthest < kWarp) furthest *= 2;
#pragma unroll
    for (int k = 0; k < K; ++k) {
        Pair sum = mine(k);
        for (int offset = furthest / 2; offset >= plan.lanes; offset /= 2) {
            const Pair other = shuffle_down(sum, offset);
            if (in_warp + offset < kWarp) sum = sum + other;
        }
        if (in_warp < plan.lanes) scratch[warp * tile_channels + place.lane * K + k] = sum;
    }
    __syncthreads();
    Pair sum{0, 0};
    if (static_cast<int>(threadIdx.x) < tile_channels)
        for (int w = 0; w < warps; ++w) sum = sum + scratch[w * tile_channels + threadIdx.x];
    __syncthreads();  // scratch may be written again
    return sum;
}

// Adds up entry(t, 0), entry(t, 1), ... entry(t, entries(t) - 1) for every channel t of the tile, with one warp for
// each. Thread t gets the result of channel t.
template <typename Entries, typename Entry>
__device__ Pair
sum_by_warps(int tile_channels, const Entries& entries, const Entry& entry, Pair* scratch, int results) {
    const int warp = threadIdx.x / kWarp, warps = blockDim.x / kWarp, lane = threadIdx.x % kWarp;
    for (int t = warp; t < tile_channels; t += warps) {
        Pair sum{0, 0};
        for (int i = lane, n = entries(t); i < n; i += kWarp) sum = sum + entry(t, i);
        for (int offset = kWarp / 2; offset > 0; offset /= 2) sum = sum + shuffle_down(sum, offset);
        if (lane == 0) scratch[results + t] = sum;
    }
    __syncthreads();
    return static_cast<int>(threadIdx.x) < tile_channels ? scratch[results + threadIdx.x] : Pair{0, 0};
}

// Sums over the threads of a block. In short runs the elements of a thread belong to at most two channels, the same in
// every row: each thread stores a sum for both, and then the lanes of a channel are added up.
template <Layout layout, int V, typename Mine>
__device__ Pair sum_over_block(const Plan& plan, const Place& place, const Mine& mine, Pair* scratch) {
    if constexpr (layout != Layout::ShortRuns) {
        return sum_by_lanes<Channels<layout, V>::kCount>(plan, place, mine, scratch);
    } else {
        const int inner = static_cast<int>(plan.inner), rows = plan.rows();
        const int boundary = (place.lane * V / inner + 1) * inner - place.lane * V;  // where the second channel begins
        Pair first{0, 0}, second{0, 0};
#pragma unroll
        for (int i = 0; i < V; ++i) {
            const Pair element = mine(i);
            if (i < boundary)
                first = first + element;
            else
                second = second + element;
        }
        scratch[2 * threadIdx.x] = first;
        scratch[2 * threadIdx.x + 1] = second;
        __syncthreads();

        const auto begin = [&](int t) { return t * inner / V; };  // the first lane with elements of channel t
        const auto lanes = [&](int t) { return ((t + 1) * inner - 1) / V + 1 - begin(t); };
        return sum_by_warps(
            plan.tile_channels, [&](int t) { return rows * lanes(t); },
            [&](int t, int i) {
                const int lane = begin(t) + i % lanes(t), row = i / lanes(t);
                const bool second = lane * V / inner != t;
                return scratch[2 * (row * plan.lanes + lane) + second];
            },
            scratch, 2 * blockDim.x);
    }
}

// Sums over all blocks of the tile. Each block stores its sums in `partials` and takes a ticket; the block with the
// last ticket adds up all sums. Returns whether this is the last block; only then thread t has the sum of channel t.
template <Layout layout, int V, typename Mine>
__device__ bool sum_over_tile(
    const Plan& plan, const Place& place, const Mine& mine, Pair& sum, Pair* scratch, const Workspace& workspace) {
    sum = sum_over_block<layout, V>(plan, place, mine, scratch);
    if (plan.splits == 1) return true;

    const int tile_channels = plan.tile_channels;
    const auto partial = [&](int64_t split, int channel) {
        return ((place.tile * plan.splits + split) * tile_channels + channel) * 2;
    };
    if (static_cast<int>(threadIdx.x) < tile_channels)
        store_vector<2>(
            workspace.partials + partial(place.split, threadIdx.x), Vector<double, 2>{{sum.first, sum.second}});
    __syncthreads();
    bool is_last = false;
    if (threadIdx.x == 0) {  // its fences serve the block, because the barriers beside them order the other threads
        const unsigned last = static_cast<unsigned>(plan.splits) - 1;
        __threadfence();  // the partial sums become visible before the ticket
        is_last = atomicInc(&workspace.tickets[place.tile], last) == last;
        __threadfence();  // and the other blocks' partial sums after it
    }
    if (!__syncthreads_or(is_last)) return false;

    const auto of_split = [&](int64_t split, int channel) {
        const Vector<double, 2> other = load_vector<2>(workspace.partials + partial(split, channel));
        return Pair{other.at[0], other.at[1]};
    };
    if constexpr (layout == Layout::ShortRuns) {
        sum = sum_by_warps(
            tile_channels, [&](int) { return static_cast<int>(plan.splits); },
            [&](int t, int split) { return of_split(split, t); }, scratch, 2 * blockDim.x);
    } else {
        constexpr int K = Channels<layout, V>::kCount;
        const auto of_all_splits = [&](int k) {
            Pair sum{0, 0};
            if (place.row < plan.rows())
                for (int64_t split = place.row; split < plan.splits; split += plan.rows())
                    sum = sum + of_split(split, place.lane * K + k);
            return sum;
        };
        sum = sum_by_lanes<K>(plan, place, of_all_splits, scratch);
    }
    return true;
}

}  // namespace sbnref
