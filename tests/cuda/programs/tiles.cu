#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>

#include <algorithm>

#include "program.h"

namespace cg = cooperative_groups;

__global__ void tiles(const int* x, int* sums, int* greatest, int* count, int* odd) {
    const auto block = cg::this_thread_block();
    const cg::thread_block_tile<8> tile = cg::tiled_partition<8>(block);
    const int v = x[block.thread_rank()];
    int sum = v;
    for (int d = tile.size() / 2; d > 0; d /= 2) sum += tile.shfl_down(sum, d);
    if (tile.thread_rank() == 0) sums[tile.meta_group_rank()] = sum;
    const int most = cg::reduce(tile, v, cg::greater<int>());
    if (tile.thread_rank() == 7) greatest[tile.meta_group_rank()] = most;
    // One atomic operation for all threads of a warp that take the branch.
    if (v % 2) {
        const cg::coalesced_group active = cg::coalesced_threads();
        int before = 0;
        if (active.thread_rank() == 0) before = atomicAdd(count, static_cast<int>(active.size()));
        odd[active.shfl(before, 0) + active.thread_rank()] = v;
    }
}

int main() {
    constexpr int n = 96;
    std::vector<int> h(n);
    int odd_sum = 0;
    for (int i = 0; i < n; ++i) odd_sum += (h[i] = i * 37 % 101) % 2 ? h[i] : 0;
    int *x = on_gpu(h), *sums = on_gpu<int>(n / 8), *greatest = on_gpu<int>(n / 8), *count = zeros_on_gpu<int>(1);
    int* odd = zeros_on_gpu<int>(n);
    tiles<<<1, n>>>(x, sums, greatest, count, odd);
    const auto s = take(sums, n / 8), g = take(greatest, n / 8);
    for (int tile = 0; tile < n / 8; ++tile) {
        int sum = 0, most = 0;
        for (int i = 8 * tile; i < 8 * tile + 8; ++i) sum += h[i], most = std::max(most, h[i]);
        EXPECT(s[tile] == sum && g[tile] == most);
    }
    for (const int v : take(odd, take(count, 1)[0])) odd_sum -= v;
    EXPECT(odd_sum == 0);
    CUDA(cudaFree(x));
}
