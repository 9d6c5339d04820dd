#include <cooperative_groups.h>
#include <cooperative_groups/reduce.h>

#include "program.h"

namespace cg = cooperative_groups;

__global__ void reduce(const float* x, float* total, int n) {
    const cg::thread_block block = cg::this_thread_block();
    const auto warp = cg::tiled_partition<32>(block);
    __shared__ float s[8];
    float v = 0;
    for (int i = block.group_index().x * block.size() + block.thread_rank(); i < n; i += gridDim.x * block.size())
        v += x[i];
    v = cg::reduce(warp, v, cg::plus<float>());
    if (warp.thread_rank() == 0) s[warp.meta_group_rank()] = v;
    cg::sync(block);
    if (warp.meta_group_rank() == 0) {
        v = warp.thread_rank() < warp.meta_group_size() ? s[warp.thread_rank()] : 0;
        v = cg::reduce(warp, v, cg::plus<float>());
        if (warp.thread_rank() == 0) atomicAdd(total, v);
    }
}

int main() {
    constexpr int n = 1500;
    const auto h = numbers(n);
    float *x = on_gpu(h), *total = zeros_on_gpu<float>(1);
    reduce<<<2, 256>>>(x, total, n);
    EXPECT(take(total, 1)[0] == sum(h));
    CUDA(cudaFree(x));
}
