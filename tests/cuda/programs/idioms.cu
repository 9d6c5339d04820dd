// Correct idioms that a checker could report by mistake.
#include <cooperative_groups.h>

#include "program.h"

struct alignas(16) Packet {
    float values[4];
};

template <typename T>
__device__ Packet load(const T* p) {
    Packet packet;
    for (int i = 0; i < 4; ++i) packet.values[i] = p[i];
    return packet;
}

// A structure that a function returns is stored in shared memory.
__global__ void reverse_packets(const float* x, float* y) {
    extern Packet __shared__ packets[];
    packets[threadIdx.x] = load(x + 4 * threadIdx.x);
    __syncthreads();
    const Packet packet = packets[blockDim.x - 1 - threadIdx.x];
    for (int i = 0; i < 4; ++i) y[4 * threadIdx.x + i] = packet.values[3 - i];
}

// All threads of a warp store their common sum in one place.
__global__ void sum_of_block(const float* x, float* y) {
    float __shared__ sums[8];
    float value = x[threadIdx.x];
    for (int d = 16; d > 0; d /= 2) value += __shfl_xor_sync(~0u, value, d);
    sums[threadIdx.x / 32] = value;
    __syncthreads();
    float total = 0;
    for (int w = 0; w < blockDim.x / 32; ++w) total += sums[w];
    *y = total;
}

// A kernel may have code for some GPUs only.
__global__ void count_labels(const int* labels, int* counts) {
#if __CUDA_ARCH__ >= 700
    namespace cg = cooperative_groups;
    const auto same = cg::labeled_partition(cg::coalesced_threads(), labels[threadIdx.x]);
    if (same.thread_rank() == 0) atomicAdd_system(&counts[labels[threadIdx.x]], int(same.size()));
#endif
}

__device__ int rank_in(cooperative_groups::thread_group group) {
    group.sync();
    return group.thread_rank() + 100 * group.size();
}

__global__ void ranks(int* of_block, int* of_tile) {
    const auto block = cooperative_groups::this_thread_block();
    of_block[threadIdx.x] = rank_in(block);
    of_tile[threadIdx.x] = rank_in(cooperative_groups::tiled_partition(block, 8));
}

// Counts cycles of the GPU.
__global__ void spin(int* y) {
    const clock_t start = clock();
    while (clock() - start < 1'000'000) continue;
    *y = umin(3, 4);
}

int main() {
    constexpr int n = 64;
    const auto x = numbers(4 * n);
    float *const d_x = on_gpu(x), *const y = on_gpu<float>(4 * n), *const total = on_gpu<float>(1);
    reverse_packets<<<1, n, n * sizeof(Packet)>>>(d_x, y);
    const auto reversed = take(y, 4 * n);
    for (int i = 0; i < 4 * n; ++i) EXPECT(reversed[i] == x[4 * n - 1 - i]);
    sum_of_block<<<1, n>>>(d_x, total);
    EXPECT(take(total, 1)[0] == sum({x.begin(), x.begin() + n}));
    CUDA(cudaFree(d_x));

    std::vector<int> labels(n);
    for (int i = 0; i < n; ++i) labels[i] = i % 3;
    int *const d_labels = on_gpu(labels), *const counts = zeros_on_gpu<int>(3);
    count_labels<<<1, n>>>(d_labels, counts);
    EXPECT((take(counts, 3) == std::vector<int>{22, 21, 21}));
    CUDA(cudaFree(d_labels));

    int *const of_block = on_gpu<int>(n), *const of_tile = on_gpu<int>(n), *const one = on_gpu<int>(1);
    ranks<<<1, n>>>(of_block, of_tile);
    const auto in_block = take(of_block, n), in_tile = take(of_tile, n);
    for (int i = 0; i < n; ++i) EXPECT(in_block[i] == i + 100 * n && in_tile[i] == i % 8 + 800);
    spin<<<1, 1>>>(one);
    EXPECT(take(one, 1)[0] == 3);
}
