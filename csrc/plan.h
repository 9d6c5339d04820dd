// The launch plan: how a tensor is divided among the blocks and threads of a kernel. Pure arithmetic on the host; the
// kernels get the plan as an argument and compute their share from it.
#pragma once

#include <cstdint>

namespace sbnref {

// The place of the channels in memory. Statistics treat every dimension but the channels alike, so any dense tensor is
// (outer, channels, inner): `outer` rows with all channels, in runs of `inner` elements.
//
//   ChannelsFirst  long runs: a block works on the runs of one channel
//   ShortRuns      short runs, or runs that are no multiple of 16 bytes: a block works on neighbouring channels, whose
//                  runs together are long enough and a multiple
//   ChannelsLast   inner == 1: a row has an element of every channel
enum class Layout : int { ChannelsFirst, ShortRuns, ChannelsLast };

// The properties of the chip that a plan depends on.
struct Device {
    int multiprocessors;
    int threads_per_multiprocessor;  // resident at once, with the registers of the kernels
    int threads_per_block;           // at most
};

constexpr int kWarp = 32;             // threads
constexpr int kAccessBytes = 16;      // the widest access of a thread
constexpr int kMostInFlight = 6;      // accesses of a thread to a tensor
constexpr int kMaxThreads = 512;      // per block
constexpr int kMinBlocks = 2;         // of kMaxThreads on a multiprocessor: half of its 2048 threads
constexpr int kMaxTileChannels = 64;  // per block
constexpr int kTickets = 4096;        // tiles that may be split over several blocks, at most

// The accesses to a part of a tile, at positions 0, 1, 2, ... in memory's order: see walk.cuh.
struct Traversal {
    int64_t positions;        // of the tile
    int64_t split_positions;  // of them for each split
    int columns;              // positions of a run, in ChannelsFirst
    int column_step;          // columns from one position of a thread to its next,
    int64_t step;             // and elements from run to run
};

struct Plan {
    Layout layout;
    int64_t outer, channels, inner;  // x is (outer, channels, inner) in memory
    int64_t row;                     // elements from one outer index to the next
    int vector;                      // elements per access
    int tile_channels;               // per block
    int lanes;                       // threads of a block side by side along a row
    int threads;                     // per block; rows() * lanes of them work
    int64_t tiles;                   // blocks side by side along the channels
    int64_t splits;                  // blocks that share a tile
    Traversal body, edges;           // whole accesses, and the remaining elements

    constexpr int rows() const { return threads / lanes; }  // read by a block at once
    constexpr int64_t blocks() const { return tiles * splits; }
    constexpr int64_t count() const { return outer * inner; }  // elements per channel
};

// Accesses that a thread has in flight to each tensor: `wide` if they are of 16 bytes, more if they are narrower. With
// eight channels per thread the registers suffice for three: with four, forward_stats spills 16 to 68 bytes.
constexpr int in_flight(Layout layout, int wide, int vector, int element_size) {
    const int accesses = wide * kAccessBytes / (vector * element_size);
    const int most = layout != Layout::ChannelsFirst && vector == 8 ? 3 : kMostInFlight;
    return accesses < most ? accesses : most;
}

// unroll: accesses that a thread has in flight to each tensor, if they are of 16 bytes. Every tensor starts on a
// multiple of those.
Plan make_plan(int64_t outer, int64_t channels, int64_t inner, int element_size, int unroll, const Device& device);

}  // namespace sbnref
