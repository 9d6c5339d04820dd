// Replaces the header of the CUDA toolkit: blocks, tiles, coalesced threads and the grid.
#pragma once

#include "cuda_runtime.h"

#define CUDASIM_METHOD __attribute__((always_inline)) inline

namespace cooperative_groups {

struct thread_block {
    CUDASIM_METHOD static void sync(int line = __builtin_LINE()) { __syncthreads(line); }
    CUDASIM_METHOD static unsigned thread_rank() {
        return threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    }
    CUDASIM_METHOD static unsigned size() { return blockDim.x * blockDim.y * blockDim.z; }
    CUDASIM_METHOD static unsigned num_threads() { return size(); }
    CUDASIM_METHOD static dim3 group_index() { return blockIdx; }
    CUDASIM_METHOD static dim3 thread_index() { return threadIdx; }
    CUDASIM_METHOD static dim3 group_dim() { return blockDim; }
    CUDASIM_METHOD static dim3 dim_threads() { return blockDim; }
};

struct grid_group {
    CUDASIM_METHOD static void sync() { cudasim::wait_for_grid(); }
    CUDASIM_METHOD static bool is_valid() { return true; }
    CUDASIM_METHOD static unsigned long long block_rank() {
        return blockIdx.x + static_cast<unsigned long long>(gridDim.x) * (blockIdx.y + gridDim.y * blockIdx.z);
    }
    CUDASIM_METHOD static unsigned long long num_blocks() {
        return static_cast<unsigned long long>(gridDim.x) * gridDim.y * gridDim.z;
    }
    CUDASIM_METHOD static unsigned long long thread_rank() {
        return block_rank() * thread_block::size() + thread_block::thread_rank();
    }
    CUDASIM_METHOD static unsigned long long size() { return num_blocks() * thread_block::size(); }
    CUDASIM_METHOD static unsigned long long num_threads() { return size(); }
    CUDASIM_METHOD static dim3 group_dim() { return gridDim; }
    CUDASIM_METHOD static dim3 dim_blocks() { return gridDim; }
    CUDASIM_METHOD static dim3 block_index() { return blockIdx; }
};

// The threads of a warp in a mask. Ranks follow the order of the lanes.
class coalesced_group {
   public:
    CUDASIM_METHOD explicit coalesced_group(unsigned mask) : mask_(mask) {}
    CUDASIM_METHOD void sync() const { __syncwarp(mask_); }
    CUDASIM_METHOD unsigned size() const { return __popc(mask_); }
    CUDASIM_METHOD unsigned num_threads() const { return size(); }
    CUDASIM_METHOD unsigned thread_rank() const { return __popc(mask_ & ((1u << cudasim::built_in.lane) - 1)); }
    template <typename T>
    CUDASIM_METHOD T shfl(T v, int rank) const {
        return from("shfl", v, rank);
    }
    template <typename T>
    CUDASIM_METHOD T shfl_up(T v, unsigned d) const {
        return from("shfl_up", v, thread_rank() < d ? thread_rank() : thread_rank() - d);
    }
    template <typename T>
    CUDASIM_METHOD T shfl_down(T v, unsigned d) const {
        return from("shfl_down", v, thread_rank() + d < size() ? thread_rank() + d : thread_rank());
    }
    template <typename T>
    CUDASIM_METHOD T shfl_xor(T v, unsigned d) const {
        return from("shfl_xor", v, (thread_rank() ^ d) < size() ? thread_rank() ^ d : thread_rank());
    }
    CUDASIM_METHOD int any(int vote) const { return __any_sync(mask_, vote); }
    CUDASIM_METHOD int all(int vote) const { return __all_sync(mask_, vote); }
    CUDASIM_METHOD unsigned ballot(int vote) const {
        const unsigned lanes = __ballot_sync(mask_, vote);
        unsigned ranks = 0;
        for (unsigned rank = 0; rank < size(); ++rank) ranks |= (lanes >> lane(rank) & 1) << rank;
        return ranks;
    }
    template <typename T>
    CUDASIM_METHOD unsigned match_any(T v) const {
        return __match_any_sync(mask_, v);
    }
    CUDASIM_METHOD unsigned meta_group_size() const { return 1; }
    CUDASIM_METHOD unsigned meta_group_rank() const { return 0; }
    CUDASIM_METHOD unsigned mask() const { return mask_; }

   protected:
    unsigned mask_;

   private:
    CUDASIM_METHOD unsigned lane(unsigned rank) const {
        unsigned left = mask_;
        for (; rank > 0; --rank) left &= left - 1;
        return __ffs(left) - 1;
    }
    template <typename T>
    CUDASIM_METHOD T from(const char* kind, T v, unsigned rank) const {
        return cudasim::from_lane(kind, mask_, v, lane(rank));
    }
};

template <unsigned Size>
class tile : public coalesced_group {
   public:
    static_assert(Size >= 1 && Size <= 32 && (Size & (Size - 1)) == 0, "a tile has 1, 2, 4, 8, 16 or 32 threads");
    CUDASIM_METHOD tile()
        : coalesced_group((Size == 32 ? ~0u : (1u << Size % 32) - 1) << cudasim::built_in.lane / Size * Size) {}
    CUDASIM_METHOD static constexpr unsigned size() { return Size; }
    CUDASIM_METHOD static constexpr unsigned num_threads() { return Size; }
    CUDASIM_METHOD static unsigned thread_rank() { return cudasim::built_in.lane % Size; }
    CUDASIM_METHOD static unsigned meta_group_size() { return (thread_block::size() + Size - 1) / Size; }
    CUDASIM_METHOD static unsigned meta_group_rank() { return thread_block::thread_rank() / Size; }
};

template <unsigned Size, typename Parent = void>
using thread_block_tile = tile<Size>;

// A block or a part of a warp.
class thread_group : public coalesced_group {
   public:
    CUDASIM_METHOD explicit thread_group(unsigned mask) : coalesced_group(mask) {}
    CUDASIM_METHOD thread_group(const coalesced_group& group) : coalesced_group(group) {}
    CUDASIM_METHOD thread_group(const thread_block&) : coalesced_group(0) {}
    CUDASIM_METHOD void sync() const { mask_ == 0 ? thread_block::sync() : coalesced_group::sync(); }
    CUDASIM_METHOD unsigned size() const { return mask_ == 0 ? thread_block::size() : coalesced_group::size(); }
    CUDASIM_METHOD unsigned num_threads() const { return size(); }
    CUDASIM_METHOD unsigned thread_rank() const {
        return mask_ == 0 ? thread_block::thread_rank() : coalesced_group::thread_rank();
    }
};

CUDASIM_METHOD thread_block this_thread_block() { return {}; }
CUDASIM_METHOD grid_group this_grid() { return {}; }
CUDASIM_METHOD coalesced_group coalesced_threads() { return coalesced_group(__activemask()); }
template <unsigned Size, typename Group>
CUDASIM_METHOD tile<Size> tiled_partition(const Group&) {
    return {};
}
template <typename Group>
CUDASIM_METHOD thread_group tiled_partition(const Group&, unsigned size) {
    return thread_group((size == 32 ? ~0u : (1u << size) - 1) << cudasim::built_in.lane / size * size);
}
template <typename Group>
CUDASIM_METHOD coalesced_group binary_partition(const Group& group, bool which) {
    const unsigned yes = __ballot_sync(group.mask(), which);
    return coalesced_group(which ? yes : group.mask() & ~yes);
}
template <typename Group, typename Label>
CUDASIM_METHOD coalesced_group labeled_partition(const Group& group, Label label) {
    return coalesced_group(__match_any_sync(group.mask(), label));
}
template <typename Group>
CUDASIM_METHOD void sync(const Group& group) {
    group.sync();
}

template <typename T>
struct plus {
    CUDASIM_METHOD T operator()(T a, T b) const { return a + b; }
};
template <typename T>
struct less {
    CUDASIM_METHOD T operator()(T a, T b) const { return b < a ? b : a; }
};
template <typename T>
struct greater {
    CUDASIM_METHOD T operator()(T a, T b) const { return a < b ? b : a; }
};
template <typename T>
struct bit_or {
    CUDASIM_METHOD T operator()(T a, T b) const { return a | b; }
};
template <typename T>
struct bit_and {
    CUDASIM_METHOD T operator()(T a, T b) const { return a & b; }
};

template <typename Group, typename T, typename F>
CUDASIM_METHOD T reduce(const Group& group, T value, F f) {
    return cudasim::over_lanes("reduce", group.mask(), value, f);
}

// Scans over the threads of lower rank, exclusive or inclusive.
template <typename Group, typename T, typename F>
CUDASIM_METHOD T inclusive_scan(const Group& group, T value, F f) {
    for (unsigned d = 1; d < group.num_threads(); d *= 2) {
        const T other = group.shfl_up(value, d);
        if (group.thread_rank() >= d) value = f(other, value);
    }
    return value;
}
template <typename Group, typename T>
CUDASIM_METHOD T inclusive_scan(const Group& group, T value) {
    return inclusive_scan(group, value, plus<T>{});
}
template <typename Group, typename T, typename F>
CUDASIM_METHOD T exclusive_scan(const Group& group, T value, F f) {
    const T before = group.shfl_up(inclusive_scan(group, value, f), 1);
    return group.thread_rank() == 0 ? T{} : before;
}
template <typename Group, typename T>
CUDASIM_METHOD T exclusive_scan(const Group& group, T value) {
    return exclusive_scan(group, value, plus<T>{});
}

template <typename Group, typename T>
CUDASIM_METHOD void memcpy_async(const Group& group, T* to, const T* from, size_t bytes) {
    for (size_t i = group.thread_rank(); i < bytes / sizeof(T); i += group.num_threads()) to[i] = from[i];
}
template <typename Group>
CUDASIM_METHOD void wait(const Group& group) {
    group.sync();
}

}  // namespace cooperative_groups
