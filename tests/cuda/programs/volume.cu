#include "program.h"

__global__ void fill(int3 size, int* at, uint3* threads) {
    const int x = blockIdx.x * blockDim.x + threadIdx.x;
    const int y = blockIdx.y * blockDim.y + threadIdx.y;
    const int z = blockIdx.z * blockDim.z + threadIdx.z;
    if (x >= size.x || y >= size.y || z >= size.z) return;
    const int i = (z * size.y + y) * size.x + x;
    at[i] = 10000 * z + 100 * y + x;
    threads[i] = threadIdx;
}

int main() {
    const int3 size = make_int3(10, 7, 5);
    const int n = size.x * size.y * size.z;
    int* at = on_gpu<int>(n);
    uint3* threads = on_gpu<uint3>(n);
    const dim3 block(4, 4, 2);
    const dim3 grid(
        (size.x + block.x - 1) / block.x, (size.y + block.y - 1) / block.y, (size.z + block.z - 1) / block.z);
    fill<<<grid, block>>>(size, at, threads);
    const auto places = take(at, n);
    const auto of = take(threads, n);
    for (int i = 0; i < n; ++i) {
        const int x = i % 10, y = i / 10 % 7, z = i / 70;
        EXPECT(places[i] == 10000 * z + 100 * y + x);
        EXPECT(of[i].x == x % 4u && of[i].y == y % 4u && of[i].z == z % 2u);
    }
}
