// How a block walks over its share of a tensor, in either layout.
//
// A tile is the channels that a block works on: one in channels-first, a few neighbours in channels-last. The elements
// of a tile are visited at positions 0, 1, 2, ... and every position is one 16-byte access (one element where rows of
// channels-last are not aligned):
//
//   channels-first  every outer index has a run of `inner` elements. Runs are cut where memory has its 16-byte
//                   boundaries; where they are unaligned, the first and the last piece lie partly outside. The pieces
//                   of all runs form one sequence: no thread idles on short runs.
//   channels-last   a position is one of `outer` rows that hold all channels, and `lanes` threads read their channels
//                   side by side.
//
// The positions are shared out evenly among the splits of the tile, and within a block dealt out to the threads in
// turn.
#pragma once

#include "device.cuh"

namespace sbnref {

enum class Direction { Forwards, Backwards };

// Where a thread works. The second pass goes backwards in everything: it starts on what the cache still holds.
struct Place {
    int tile;     // of this block
    int split;    // of the tile's positions
    int lane;     // of this thread, along the channels
    int row;      // of this thread, along the positions
    int rows;     // of the block
    int channel;  // the first of those whose elements this thread visits
    int own;      // the one whose statistics this thread handles, one thread per channel; or none, -1

    __device__ Place(const Plan& plan, Direction direction) {
        const unsigned block = direction == Direction::Forwards ? block_index() : gridDim.x - 1 - block_index();
        const int thread = thread_index(), tile_channels = plan.tile_channels();
        tile = block / static_cast<unsigned>(plan.splits);
        split = block % static_cast<unsigned>(plan.splits);
        lane = thread % plan.lanes;
        row = thread / plan.lanes;
        rows = blockDim.x / plan.lanes;
        channel = tile * tile_channels + lane * (tile_channels / plan.lanes);
        own = tile * tile_channels + thread;
        if (thread >= tile_channels || own >= plan.channels) own = -1;
    }
};

// Up to V neighbouring elements of x: element at + i where bit i is set. `at` is a multiple of 16 bytes where V is.
template <int V>
struct Chunk {
    static constexpr unsigned kWhole = (1u << V) - 1;

    int64_t at;
    unsigned mask;

    __device__ bool holds(int i) const { return mask >> i & 1; }
    __device__ bool whole() const { return mask == kWhole; }
    __device__ bool empty() const { return mask == 0; }
};

template <Layout layout, int V>
class Walk {
   public:
    __device__ Walk(const Plan& plan, const Place& place, Direction direction) : plan_(plan) {
        const int64_t begin = place.split * plan.split_positions;
        const int64_t rest = plan.positions() - begin;
        const int here = static_cast<int>(rest < plan.split_positions ? rest : plan.split_positions);
        const bool forwards = direction == Direction::Forwards;
        const int64_t start = begin + (forwards ? place.row : here - 1 - place.row);
        const int step = forwards ? place.rows : -place.rows;
        left_ = place.channel < plan.channels ? (here - place.row + place.rows - 1) / place.rows : 0;

        // Position = outer index * columns + column.
        const int64_t outer = floor_div(start, plan.columns);
        const int outer_step = floor_div(step, plan.columns);
        column_ = static_cast<int>(start - outer * plan.columns);
        column_step_ = step - outer_step * plan.columns;
        next_run_ = plan.channels * plan.inner;
        at_ = outer * next_run_ + place.channel * plan.inner;
        step_ = outer_step * next_run_;
    }

    __device__ bool more() const { return left_ > 0; }

    // The next U chunks of this thread; past its last one they are empty.
    template <int U>
    __device__ __forceinline__ void next(Chunk<V> (&chunks)[U]) {
#pragma unroll
        for (int u = 0; u < U; ++u) {
            chunks[u] = chunk();
            --left_;
            at_ += step_;
            if constexpr (layout == Layout::ChannelsLast) continue;
            column_ += column_step_;
            if (column_ >= plan_.columns) column_ -= plan_.columns, at_ += next_run_;
        }
    }

   private:
    template <typename I>
    __device__ static I floor_div(I a, int b) {
        if constexpr (layout == Layout::ChannelsLast) return a;  // there is one column
        return a / b - (a % b < 0);
    }

    __device__ __forceinline__ Chunk<V> chunk() const {
        const unsigned whole = left_ > 0 ? Chunk<V>::kWhole : 0;
        if constexpr (layout == Layout::ChannelsLast) {
            return {at_, whole};
        } else if constexpr (layout == Layout::ChannelsFirst) {
            return {at_ + static_cast<int64_t>(column_) * V, whole};
        } else {
            // The run starts `before` elements after a boundary; after its whole pieces, at most 2 V - 2 elements
            // remain.
            const int before = static_cast<int>((at_ + plan_.misaligned) & (V - 1));
            const int pieces = static_cast<int>(plan_.inner / V), rest = before + static_cast<int>(plan_.inner % V);
            const int here = column_ < pieces ? V : column_ == pieces ? rest : rest - V;  // at most V count
            const unsigned begun = column_ == 0 ? ~0u << before : ~0u;
            const unsigned ended = here > 0 ? ~0u << here : ~0u;
            return {at_ + static_cast<int64_t>(column_) * V - before, whole & begun & ~ended};
        }
    }

    const Plan& plan_;
    int64_t at_;                // the start of the run, in channels-last the element itself
    int64_t step_, next_run_;   // elements
    int column_, column_step_;  // the piece of the run
    int left_;                  // positions that this thread has still to visit
};

// Whether a chunk can be accessed in one go. One that reaches over the ends of the tensor cannot, nor one in a tensor
// that lies differently to the 16-byte boundaries than x.
template <Layout layout, int V, typename T>
__device__ __forceinline__ bool accessible(const Array<T>& array, const Chunk<V>& chunk) {
    if constexpr (layout != Layout::ChannelsFirstUnaligned) return true;
    return chunk.at >= 0 && chunk.at + V <= array.size &&
           reinterpret_cast<uintptr_t>(array.data + chunk.at) % kAccessBytes == 0;
}

// Loads the chunks, with what lies beside them in the same 16 bytes. All wide loads are issued before the first value
// is used.
template <Layout layout, int V, typename T, int U>
__device__ __forceinline__ void load_chunks(
    Array<const T> array, const Chunk<V> (&chunks)[U], Vector<T, V> (&values)[U]) {
#pragma unroll
    for (int u = 0; u < U; ++u) {
        values[u] = {};
        if (!chunks[u].empty() && accessible<layout, V>(array, chunks[u]))
            values[u] = load_vector<V>(array, chunks[u].at);
    }
    if constexpr (layout == Layout::ChannelsFirstUnaligned) {
#pragma unroll
        for (int u = 0; u < U; ++u) {
            if (chunks[u].empty() || accessible<layout, V>(array, chunks[u])) continue;
#pragma unroll
            for (int i = 0; i < V; ++i)
                if (chunks[u].holds(i)) values[u].at[i] = load(array, chunks[u].at + i);
        }
    }
}

// Stores the chunks and nothing beside them.
template <Layout layout, int V, typename T, int U>
__device__ __forceinline__ void store_chunks(
    Array<T> array, const Chunk<V> (&chunks)[U], const Vector<T, V> (&values)[U]) {
#pragma unroll
    for (int u = 0; u < U; ++u) {
        if (chunks[u].whole() && accessible<layout, V>(array, chunks[u])) {
            store_vector<V>(array, chunks[u].at, values[u]);
            continue;
        }
        if constexpr (layout == Layout::ChannelsFirstUnaligned) {
#pragma unroll
            for (int i = 0; i < V; ++i)
                if (chunks[u].holds(i)) store(array, chunks[u].at + i, values[u].at[i]);
        }
    }
}

// The values of U chunks, sorted for a reduction. In channels-first a chunk is a group of V values of the thread's one
// channel; in channels-last the U chunks are one group, of U values for each of the thread's V channels.
template <Layout layout, int V, int U>
struct Groups {
    static constexpr bool kFirst = layout != Layout::ChannelsLast;
    static constexpr int kCount = kFirst ? U : 1;
    static constexpr int kChannels = kFirst ? 1 : V;  // of a thread
    static constexpr int kValues = kFirst ? V : U;    // of a channel in a group

    // Value i of the thread's k-th channel in group g.
    template <typename T>
    __device__ static Accumulator<T> value(const Vector<T, V> (&values)[U], int g, int k, int i) {
        return kFirst ? element(values[g], i) : element(values[i], k);
    }

    // A bit for each value that is there; the same for all channels of the thread.
    __device__ static unsigned mask(const Chunk<V> (&chunks)[U], int g) {
        if (kFirst) return chunks[g].mask;
        unsigned mask = 0;
#pragma unroll
        for (int u = 0; u < U; ++u) mask |= chunks[u].empty() ? 0 : 1u << u;
        return mask;
    }
    static constexpr unsigned kWhole = (1u << kValues) - 1;

    // Which of the thread's channels an element of a chunk belongs to.
    __device__ static constexpr int channel(int i) { return kFirst ? 0 : i; }
};

// The second pass over the data: every element is read once, mapped, and written once. `map(c, at)` gives the new value
// from its channel's coefficients, which the block has in shared memory, and from at(n), its value in the n-th input.
template <Layout layout, int V, int U, int N, typename T, typename Coefficients, typename Map>
__device__ __forceinline__ void map_elements(
    const Plan& plan, const Place& place, SharedArray<Coefficients> coefficients, const Array<const T> (&inputs)[N],
    const Array<T>& output, const Map& map) {
    using G = Groups<layout, V, U>;
    Walk<layout, V> walk(plan, place, Direction::Backwards);
    if (!walk.more()) return;
    Coefficients mine[G::kChannels];
#pragma unroll
    for (int k = 0; k < G::kChannels; ++k) mine[k] = coefficients[place.lane * G::kChannels + k];
    while (walk.more()) {
        Chunk<V> chunks[U];
        Vector<T, V> values[N][U];
        walk.next(chunks);
#pragma unroll
        for (int n = 0; n < N; ++n) load_chunks<layout, V>(inputs[n], chunks, values[n]);
#pragma unroll
        for (int u = 0; u < U; ++u) {
#pragma unroll
            for (int i = 0; i < V; ++i) {
                const auto at = [&](int n) { return element(values[n][u], i); };
                values[N - 1][u].at[i] = static_cast<T>(map(mine[G::channel(i)], at));
            }
        }
        store_chunks<layout, V>(output, chunks, values[N - 1]);
    }
}

}  // namespace sbnref
