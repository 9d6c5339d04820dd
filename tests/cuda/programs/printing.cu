#include <cassert>

#include "program.h"

__global__ void greet(int n) {
    assert(n > 0 && "a positive number");
    if (threadIdx.x == 0) printf("block %d of %d, %.1f and %s\n", blockIdx.x, gridDim.x, 0.5 * n, "a word");
}

__global__ void time_it(long long* cycles) {
    const clock_t begin = clock();
    const long long start = clock64();
    __nanosleep(10);
    cycles[0] = clock64() - start;
    cycles[1] = clock() - begin;
}

int main() {
    greet<<<2, 32>>>(3);
    long long* cycles = on_gpu<long long>(2);
    time_it<<<1, 1>>>(cycles);
    CUDA(cudaDeviceSynchronize());
    EXPECT(take(cycles, 2)[0] >= 0);
}
