#include "program.h"

constexpr int kThreads = 64;

// One pass: blocks draw tickets, and each waits for the previous block's total.
__global__ void scan(const int* x, int* y, int n, unsigned* ticket, volatile unsigned* ready, volatile int* totals) {
    __shared__ unsigned block;
    __shared__ int before, s[kThreads];
    const int t = threadIdx.x;
    if (t == 0) block = atomicAdd(ticket, 1);
    __syncthreads();
    const int i = block * kThreads + t;
    s[t] = i < n ? x[i] : 0;
    for (int d = 1; d < kThreads; d *= 2) {
        __syncthreads();
        const int other = t >= d ? s[t - d] : 0;
        __syncthreads();
        s[t] += other;
    }
    if (t == kThreads - 1) {
        before = 0;
        if (block > 0) {
            while (atomicAdd(const_cast<unsigned*>(&ready[block - 1]), 0) == 0) {
            }
            __threadfence();
            before = totals[block - 1];
        }
        totals[block] = before + s[t];
        __threadfence();
        atomicExch(const_cast<unsigned*>(&ready[block]), 1u);
    }
    __syncthreads();
    if (i < n) y[i] = before + s[t];
}

int main() {
    constexpr int n = 500, blocks = (n + kThreads - 1) / kThreads;
    std::vector<int> h(n);
    for (int i = 0; i < n; ++i) h[i] = i * 5 % 17;
    int *x = on_gpu(h), *y = on_gpu<int>(n), *totals = on_gpu<int>(blocks);
    unsigned* flags = zeros_on_gpu<unsigned>(1 + blocks);
    scan<<<blocks, kThreads>>>(x, y, n, flags, flags + 1, totals);
    const auto result = take(y, n);
    int total = 0;
    for (int i = 0; i < n; ++i) EXPECT(result[i] == (total += h[i]));
    CUDA(cudaFree(x));
    CUDA(cudaFree(totals));
    CUDA(cudaFree(flags));
}
