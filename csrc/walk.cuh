// A block's walk over its share of a tensor, in any layout.
//
// A tile is the channels that a block works on: one in channels-first, neighbours otherwise. The elements of a tile are
// visited at positions 0, 1, 2, ... Every position is one access, of 16 bytes wherever the tensor allows it:
//
//   channels-first  every outer index has a run of `inner` elements of the channel. A run is accessed from its first
//                   16-byte boundary on; the accesses of all runs form one sequence, so that no thread idles on short
//                   ones. The few elements before and after them, the edges of the run, are visited one by one.
//   short runs,     a position is one of `outer` rows, and `lanes` threads read the tile's part of it side by side. The
//   channels-last   channel of a thread's elements does not change.
//
// The positions are divided evenly among the splits of the tile, and in a block they go to the threads in turn.
//
// Read tutorials/kernels/9_half.cu first, which does without the tricks below. It takes about 110 instructions for 16
// bytes where forward_stats takes 65, and 55 for each access where forward_apply takes 30 (half precision,
// channels-first). The comment at each trick states its gain. All these numbers are from nvcc 13.0's code for sm_90,
// for 16-byte accesses; no time was measured.
#pragma once

#include "device.cuh"

namespace sbnref {

enum class Direction { Forwards, Backwards };
enum class Part { Body, Edges };  // of a tile, see Plan

constexpr int kEdgesInFlight = 4;  // of a thread, in each tensor

// The place of a thread. The second pass goes backwards everywhere: it starts on data that is still in the cache.
struct Place {
    int tile;   // of this block
    int split;  // of the tile's positions
    int lane;   // of this thread, along a row
    int row;    // of this thread, along the positions; plan.rows() or more if it has none
    int own;    // the channel for whose statistics this thread is responsible, or -1

    __device__ Place(const Plan& plan, Direction direction) {
        const unsigned block = direction == Direction::Forwards ? block_index() : gridDim.x - 1 - block_index();
        const int thread = thread_index();
        tile = block / static_cast<unsigned>(plan.splits);
        split = block % static_cast<unsigned>(plan.splits);
        lane = thread % plan.lanes;
        row = thread / plan.lanes;
        own = tile * plan.tile_channels + thread;
        if (thread >= plan.tile_channels || own >= plan.channels) own = -1;
    }
};

// The channels of a thread's elements.
template <Layout layout, int V>
struct Channels {
    static constexpr int kCount = layout == Layout::ChannelsFirst ? 1 : V;  // with coefficients for each

    // The channel of the tile for the k-th channel of the thread.
    __device__ static int in_tile(const Plan& plan, const Place& place, int k) {
        if constexpr (layout == Layout::ChannelsFirst) return 0;
        const int element = place.lane * V + k;
        return layout == Layout::ShortRuns ? element / static_cast<int>(plan.inner) : element;
    }
};

// A thread's path over a part of its tile, V elements at a time. Position = outer index * columns + column.
template <Layout layout, int V, Direction direction, Part part>
class Walk {
   public:
    __device__ Walk(const Plan& plan, const Place& place)
        : plan_(plan), traversal_(part == Part::Body ? plan.body : plan.edges), at_(0), column_(0) {
        const int64_t begin = place.split * traversal_.split_positions, rest = traversal_.positions - begin;
        const int here = static_cast<int>(rest < traversal_.split_positions ? rest : traversal_.split_positions);
        const int rows = plan.rows();
        const int64_t start = begin + (kForwards ? place.row : here - 1 - place.row);
        left_ = place.row < here && place.row < rows ? (here - place.row + rows - 1) / rows : 0;

        at_ = static_cast<int64_t>(place.tile) * plan.tile_channels * plan.inner;
        if constexpr (layout == Layout::ChannelsFirst) {
            if (left_ == 0) return;
            const int64_t outer = start / traversal_.columns;
            column_ = static_cast<int>(start - outer * traversal_.columns);
            at_ += outer * plan.row;
        } else {
            at_ += place.lane * V;
            if (at_ >= plan.row) left_ = 0;  // the last tile may extend beyond the last channel
            at_ += start * plan.row;
        }
    }

    // The number of accesses; none if negative.
    __device__ int left() const { return left_; }

    // Advances by U accesses, and calls f(u, at) for those that exist: access u is to the V elements from `at` on.
    template <int U, typename F>
    __device__ void visit(const F& f) {
        for (int u = 0; u < U; ++u) {
            if (u < left_) f(u, at());
            step();
        }
        left_ -= U;
    }

   private:
    static constexpr bool kForwards = direction == Direction::Forwards;

    __device__ int64_t at() const {
        if constexpr (layout != Layout::ChannelsFirst) {
            return at_;
        } else if constexpr (part == Part::Body) {
            return ((at_ + V - 1) & -static_cast<int64_t>(V)) + static_cast<int64_t>(column_) * V;
        } else {
            const int before = static_cast<int>(-at_ & (plan_.vector - 1));  // elements to the first boundary
            return at_ + column_ + (column_ < before ? 0 : static_cast<int64_t>(plan_.body.columns) * plan_.vector);
        }
    }

    // Advance without a division: computing column and row by division takes 5 to 19 instructions more for each access
    // in channels-first.
    __device__ void step() {
        at_ += kForwards ? traversal_.step : -traversal_.step;
        if constexpr (layout == Layout::ChannelsFirst) {
            column_ += kForwards ? traversal_.column_step : -traversal_.column_step;
            if (kForwards && column_ >= traversal_.columns) column_ -= traversal_.columns, at_ += plan_.row;
            if (!kForwards && column_ < 0) column_ += traversal_.columns, at_ -= plan_.row;
        }
    }

    const Plan& plan_;
    const Traversal& traversal_;
    int64_t at_;  // the start of the run, in channels-first; the access itself otherwise
    int column_;  // of the run
    int left_;    // remaining accesses of this thread
};

// A thread's reads of N tensors, in rounds of U accesses to each that are in flight together. A backward walk reads for
// the last time.
template <Layout layout, int V, int U, Direction direction, Part part, int N, typename T>
class Rounds {
    static constexpr bool kFirst = layout == Layout::ChannelsFirst;

   public:
    // Prefetches the first round into the cache, where it takes no registers. That costs about 180 instructions in
    // channels-first and up to 32 otherwise, once. The saving is time, which only a GPU shows.
    __device__ Rounds(const Plan& plan, const Place& place, const T* const (&arrays)[N])
        : arrays_(arrays), walk_(plan, place) {
        auto round = walk_;
        round.template visit<U>([&](int, int64_t at) {
            for (int n = 0; n < N; ++n) prefetch(arrays_[n] + at);
        });
    }

    __device__ bool more() const { return walk_.left() > 0; }

    // Calls take_in(G, value) for a group of G values of each of the thread's channels, where value(n, k, i) is value i
    // of the k-th channel in the n-th tensor. A full round is one group; in the last round every access is a group.
    // With one group per access, forward_stats would take 53 instructions instead of 41 in float32 and 77 instead of 65
    // in half precision, channels-first.
    template <typename TakeIn>
    __device__ void reduce(const TakeIn& take_in) {
        constexpr int kOfAccess = kFirst ? V : 1;  // values of a channel in an access
        while (more()) {
            const int here = walk_.left();
            load();
            if (here >= U) {
                take_in(std::integral_constant<int, U * kOfAccess>{}, [&](int n, int k, int i) {
                    return kFirst ? element(values_[n][i / V], i % V) : element(values_[n][i], k);
                });
                continue;
            }
            for (int u = 0; u < U - 1; ++u) {
                if (u < here)
                    take_in(std::integral_constant<int, kOfAccess>{}, [&](int n, int k, int i) {
                        return element(values_[n][u], kFirst ? i : k);
                    });
            }
        }
    }

    // Writes map(c, at) to the output: the new value from its channel's coefficients and from at(n), its value in the
    // n-th tensor. It walks the round again: keeping the addresses would save 2 to 3 instructions for each access in
    // channels-first, but make backward_apply spill 8 bytes in half precision, channels-last.
    template <typename Coefficients, int K, typename Map>
    __device__ void map(const Coefficients (&of_channel)[K], T* output, const Map& map) {
        while (more()) {
            auto round = walk_;
            load();
            round.template visit<U>([&](int u, int64_t at) {
                Vector<T, V> value;
                for (int i = 0; i < V; ++i)
                    value.at[i] = static_cast<T>(
                        map(of_channel[kFirst ? 0 : i], [&](int n) { return element(values_[n][u], i); }));
                store_vector<V>(output + at, value);
            });
        }
    }

   protected:
    const T* const (&arrays_)[N];

   private:
    // All loads are issued before the first value is used.
    __device__ void load() {
        walk_.template visit<U>([&](int u, int64_t at) {
            constexpr Use kUse = direction == Direction::Forwards ? Use::Again : Use::Last;
            for (int n = 0; n < N; ++n) values_[n][u] = load_vector<V, kUse>(arrays_[n] + at);
        });
    }

    Walk<layout, V, direction, part> walk_;  // where the next round begins
    Vector<T, V> values_[N][U];
};

// The first pass over N tensors: construct it early to prefetch, then reduce() reads everything.
template <Layout layout, int V, int U, int N, typename T>
class FirstPass : public Rounds<layout, V, U, Direction::Forwards, Part::Body, N, T> {
    using Body = Rounds<layout, V, U, Direction::Forwards, Part::Body, N, T>;

   public:
    using Body::Body;

    template <typename TakeIn>
    __device__ void reduce(const Plan& plan, const TakeIn& take_in) {
        Body::reduce(take_in);
        if constexpr (layout == Layout::ChannelsFirst) {
            if (plan.edges.positions == 0) return;
            const Place place(plan, Direction::Forwards);  // again: kept, half precision spills 12 to 40 bytes
            Rounds<layout, 1, kEdgesInFlight, Direction::Forwards, Part::Edges, N, T>(plan, place, Body::arrays_)
                .reduce(take_in);
        }
    }
};

// The second pass over N tensors: every element is read once, mapped, and written once. Construct it early to prefetch,
// then map() does the rest, with the channels' coefficients in shared memory.
template <Layout layout, int V, int U, int N, typename T>
class SecondPass : public Rounds<layout, V, U, Direction::Backwards, Part::Body, N, T> {
    using Body = Rounds<layout, V, U, Direction::Backwards, Part::Body, N, T>;

   public:
    using Body::Body;

    template <typename Coefficients, typename Map>
    __device__ void map(
        const Plan& plan, const Place& place, const Coefficients* coefficients, T* output, const Map& map) {
        using Own = Channels<layout, V>;
        if (layout != Layout::ChannelsFirst && !Body::more()) return;
        Coefficients mine[Own::kCount];
        for (int k = 0; k < Own::kCount; ++k) mine[k] = coefficients[Own::in_tile(plan, place, k)];
        Body::map(mine, output, map);
        if constexpr (layout == Layout::ChannelsFirst) {
            if (plan.edges.positions == 0) return;
            Rounds<layout, 1, kEdgesInFlight, Direction::Backwards, Part::Edges, N, T>(plan, place, Body::arrays_)
                .map(mine, output, map);
        }
    }
};

}  // namespace sbnref
