#include "program.h"

constexpr int kBins = 13;

__global__ void histogram(const unsigned char* data, int n, unsigned* bins) {
    __shared__ unsigned of_block[kBins];
    for (int b = threadIdx.x; b < kBins; b += blockDim.x) of_block[b] = 0;
    __syncthreads();
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += blockDim.x * gridDim.x)
        atomicAdd(&of_block[data[i] % kBins], 1u);
    __syncthreads();
    for (int b = threadIdx.x; b < kBins; b += blockDim.x) atomicAdd(bins + b, of_block[b]);
}

int main() {
    std::vector<unsigned char> h(1500);
    std::vector<unsigned> expected(kBins);
    for (size_t i = 0; i < h.size(); ++i) ++expected[(h[i] = i * i % 251) % kBins];
    unsigned char* data = on_gpu(h);
    unsigned* bins = on_gpu<unsigned>(kBins);
    CUDA(cudaMemset(bins, 0, kBins * sizeof *bins));
    histogram<<<3, 96>>>(data, static_cast<int>(h.size()), bins);
    EXPECT(take(bins, kBins) == expected);
    CUDA(cudaFree(data));
}
