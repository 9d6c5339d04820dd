// The launch plan: how a tensor is shared out among the blocks and threads of a kernel. Pure arithmetic on the host;
// the kernels receive the plan as an argument and find their share from it.
#pragma once

#include <cstdint>

namespace sbnref {

// Where the channels lie in memory. Statistics treat every dimension but the channels alike, so any dense tensor is
// (outer, channels, inner), and one with inner == 1 is a matrix whose rows hold all channels. Channels-first is
// unaligned where not every run of `inner` elements starts and ends on a 16-byte boundary.
enum class Layout : int { ChannelsFirst, ChannelsFirstUnaligned, ChannelsLast };

// What a plan has to know of the chip.
struct Device {
    int multiprocessors;
    int threads_per_multiprocessor;  // that are resident at once, with the registers the kernels use
    int threads_per_block;           // at most
};

constexpr int kAccessBytes = 16;      // the widest access of a thread
constexpr int kMaxThreads = 512;      // per block
constexpr int kMinBlocks = 2;         // of kMaxThreads that a multiprocessor can hold: half of its 2048 threads
constexpr int kMaxTileChannels = 64;  // per block
constexpr int kTickets = 4096;        // tiles that may be split over several blocks, at most

struct Plan {
    Layout layout;
    int64_t outer, channels, inner;  // x is (outer, channels, inner) in memory
    int vector;                      // elements per access
    int misaligned;                  // elements from the last 16-byte boundary of memory to x, in channels-first
    int columns;                     // accesses that a run of `inner` elements takes, at most
    int lanes;                       // threads of a block side by side along the channels
    int threads;                     // per block; threads / lanes of them share a channel
    int64_t tiles;                   // blocks side by side along the channels
    int64_t splits;                  // blocks that share a channel
    int64_t split_positions;         // of the tile's positions, for each of them

    constexpr int tile_channels() const { return layout == Layout::ChannelsLast ? lanes * vector : 1; }  // per block
    constexpr int64_t positions() const { return outer * columns; }  // of the threads of a tile, see walk.cuh
    constexpr int64_t blocks() const { return tiles * splits; }
    constexpr int64_t count() const { return outer * inner; }  // elements per channel
};

// misaligned: elements from the last 16-byte boundary of memory to x; aligned: whether every tensor starts on one;
// unroll: accesses that a thread has in flight to each tensor.
Plan make_plan(
    int64_t outer, int64_t channels, int64_t inner, int element_size, int misaligned, bool aligned, int unroll,
    const Device& device);

}  // namespace sbnref
