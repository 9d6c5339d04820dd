#include "program.h"

__device__ double add(double* address, double v) {
    auto* bits = reinterpret_cast<unsigned long long*>(address);
    unsigned long long old = *reinterpret_cast<volatile unsigned long long*>(bits), assumed;
    do {
        assumed = old;
        old = atomicCAS(bits, assumed, __double_as_longlong(v + __longlong_as_double(assumed)));
    } while (assumed != old);
    return __longlong_as_double(old);
}

__global__ void sum(double* total) { add(total, threadIdx.x + 0.5); }

// A thread of each block enters, and the next one sees its writes.
__global__ void enter(int* lock, int* visitors, int* order) {
    if (threadIdx.x != 0) return;
    while (atomicCAS(lock, 0, 1) != 0) {
    }
    __threadfence();
    order[*visitors] = blockIdx.x;
    *visitors += 1;
    __threadfence();
    atomicExch(lock, 0);
}

int main() {
    double* total = zeros_on_gpu<double>(1);
    sum<<<1, 100>>>(total);
    EXPECT(take(total, 1)[0] == 5000);
    int *lock = zeros_on_gpu<int>(1), *visitors = zeros_on_gpu<int>(1), *order = on_gpu<int>(20);
    enter<<<20, 32>>>(lock, visitors, order);
    EXPECT(take(visitors, 1)[0] == 20);
    int blocks = 0;
    for (const int b : take(order, 20)) blocks += b;
    EXPECT(blocks == 190);
    CUDA(cudaFree(lock));
}
