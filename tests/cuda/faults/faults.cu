// Planted faults, by the name that the program is given. The comment at a faulty line holds the name and a part of the
// report.
#include <cuda_runtime.h>

#include <cassert>
#include <cstdio>
#include <cstring>
#include <map>
#include <string>

constexpr int kSize = 64;
__constant__ int constant[4];
__device__ unsigned finished;

__global__ void missing_barrier(float* x) {
    __shared__ float s[kSize];
    s[threadIdx.x] = x[threadIdx.x];
    x[threadIdx.x] = s[kSize - 1 - threadIdx.x];  // fault missing_barrier: reads shared s[63], which was never written
}
__global__ void early_read(float* x) {
    __shared__ float s[kSize];
    s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    const float other = s[kSize - 1 - threadIdx.x];  // fault early_read: which thread 31 wrote, without a barrier
    s[threadIdx.x] = 2 * other;
}
__global__ void shared_race(float* x) {
    __shared__ float total;
    if (threadIdx.x == 0) total = 0;
    __syncthreads();
    total += x[threadIdx.x];  // fault shared_race: reads shared total[0], which thread 0 wrote, without a barrier
    __syncthreads();
    x[threadIdx.x] = total;
}
__global__ void lost_update(float* x) {
    if (threadIdx.x == 0) x[0] = x[0] + 1;  // fault lost_update: reads x[0], which block 0, thread 0 wrote
}
__global__ void unfinished(float* x) {
    x[blockIdx.x] = 1;
    if (atomicAdd(&finished, 1) == gridDim.x - 1)
        x[0] += x[1] + x[2];  // fault no_fence: without an order between the two blocks
}
__global__ void read_after_atomic(int* x) {
    __shared__ int s;
    if (threadIdx.x == 0) s = 0;
    __syncthreads();
    atomicAdd(&s, 1);  // fault read_after_atomic: updates shared s[0], which thread 0 read
    x[threadIdx.x] = s;
}
__global__ void out_of_bounds(float* x, int n) {
    if (threadIdx.x <= n) x[n - threadIdx.x] += 1;  // fault out_of_bounds: reads x[64], just past the end of x
}
__global__ void out_of_bounds_write(float* x, int n) {
    x[threadIdx.x + 1] = n;  // fault out_of_bounds_write: writes x[64]
}
__global__ void negative_index(float* x) {
    x[threadIdx.x] = x[int(threadIdx.x) - 1];  // fault negative_index: reads x[-1], 4 bytes before the beginning of x
}
__global__ void shared_out_of_bounds(float* x) {
    __shared__ float s[kSize];
    __shared__ float other[kSize];
    s[threadIdx.x + 1] = x[threadIdx.x];  // fault shared_out_of_bounds: writes s[64], just past the end of the
    other[threadIdx.x] = 0;
}
__global__ void dynamic_too_small(float* x) {
    extern __shared__ float d[];
    d[threadIdx.x] = x[threadIdx.x];  // fault dynamic_too_small: writes d[32], just past the end of the shared
}
__global__ void misaligned(float* x) {
    const auto* const vectors = reinterpret_cast<float4*>(x + threadIdx.x);
    const float4 v = *vectors;  // fault misaligned: reads 16 bytes of x at an address that is not a multiple of 16
    if (v.x == 1) x[0] = v.w;
}
struct alignas(8) Pair {
    float a, b;
};
__global__ void misaligned_structure(float* x) {
    const Pair pair = *reinterpret_cast<Pair*>(x + 1);  // fault misaligned_structure: reads 8 bytes of x at an address
    x[0] = pair.a + pair.b;
}
__global__ void misaligned_double(float* x) {
    *reinterpret_cast<double*>(x + 1) = 1;  // fault misaligned_double: writes 8 bytes of x at an address that is no
}
__global__ void uninitialized_shared(float* x) {
    __shared__ float s[kSize];
    if (threadIdx.x > 3) s[threadIdx.x] = 1;
    __syncthreads();
    x[threadIdx.x] = s[threadIdx.x];  // fault uninitialized_shared: reads shared s[0], which was never written
}
__global__ void accumulate(float* x) {
    x[threadIdx.x] += 1;  // fault uninitialized: reads y[0], which was never written
}
__global__ void divergent_shuffle(float* x) {
    float v = x[threadIdx.x];
    if (threadIdx.x < 16)
        v += __shfl_down_sync(~0u, v, 8);  // fault divergent_shuffle: waits at __shfl_down_sync for other lanes
    __syncwarp();
    x[threadIdx.x] = v;
}
__global__ void own_lane(float* x) {
    x[threadIdx.x] =
        __shfl_sync(0xffff, x[threadIdx.x], 0);  // fault own_lane: with a mask that leaves out its own lane
}
__global__ void divergent_barrier(float* x) {
    if (threadIdx.x < 40)
        __syncthreads();  // fault divergent_barrier: thread 32 waits at __syncthreads, thread 40 of the same warp
    else if (__syncthreads_or(x[0] > 1))
        x[0] = 0;
}
__global__ void missing_syncwarp(float* x) {
    __shared__ float s[kSize];
    s[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    for (int d = 16; d > 0; d /= 2)
        if (threadIdx.x < d)
            s[threadIdx.x] += s[threadIdx.x + d];  // fault missing_syncwarp: without a barrier in between
    if (threadIdx.x == 0) x[0] = s[0];
}
__global__ void read_one(const float* x, float* y) {
    y[threadIdx.x] = x[threadIdx.x];  // fault use_after_free: reads x[0] after it was freed
}
__global__ void read_null(const float* x, float* y) {
    y[threadIdx.x] = x[threadIdx.x];  // fault null_pointer: reads 4 bytes at a null pointer
}
__global__ void read_host(const float* x, float* y) {
    y[threadIdx.x] = x[threadIdx.x];  // fault host_pointer: reads 4 bytes of host memory
}
int of_host = 1;
__global__ void write_host(float* x) {
    of_host = x[0];  // fault host_variable: writes 4 bytes of host memory
}
__global__ void read_host_variable(float* x) {
    x[0] = of_host;  // fault host_variable_read: reads 4 bytes of host memory; a kernel can access only
}
__global__ void allocates(float* x) {
    auto* const p = static_cast<float*>(malloc(4));
    p[0] = x[threadIdx.x];  // fault device_malloc: the simulation does not support malloc and new in a kernel
    x[threadIdx.x] = p[0];
    free(p);
}
__global__ void write_constant(int* p) {
    *p = 1;  // fault write_constant: writes constant[0], which is constant
}
__global__ void asserts(float* x) {
    assert(x[threadIdx.x] > 0);  // fault assertion: assertion failed: x[threadIdx.x] > 0
}
__global__ void divides(float* x) {
    x[0] = 100 / int(x[threadIdx.x]);  // fault division: divides an integer by zero
}
__global__ void traps(float* x) {
    if (x[threadIdx.x] == 0) __trap();  // fault trap: executes __trap()
}
__global__ void assembly(float* x) {
    unsigned lane = 0;
    asm volatile("mov.u32 %0, %%laneid;" : "=r"(lane));  // fault assembly: executes inline assembly, which
    x[lane] = 0;
}
__global__ void deep(float* x) {  // fault too_many_locals: needs more than the 112 KiB that the simulation has
    float local[60000];
    for (float& v : local) v = x[0];
    x[0] = local[threadIdx.x];
}
__global__ void large(float* x) {
    __shared__ float s[20000];  // fault static_shared: needs more than the 48 KiB that __shared__ arrays of fixed
    x[threadIdx.x] = s[threadIdx.x];
}
__global__ void ones(float* x) { x[threadIdx.x] = 1; }

int main(int argc, char** argv) {
    const std::string name = argc > 1 ? argv[1] : "";
    float *x, *y, host[kSize] = {};
    cudaMalloc(&x, sizeof host);
    cudaMalloc(&y, sizeof host);
    cudaMemcpy(x, host, sizeof host, cudaMemcpyHostToDevice);
    const std::map<std::string, void (*)(float*)> simple = {
        {"missing_barrier", missing_barrier},
        {"early_read", early_read},
        {"shared_race", shared_race},
        {"negative_index", negative_index},
        {"shared_out_of_bounds", shared_out_of_bounds},
        {"misaligned", misaligned},
        {"misaligned_structure", misaligned_structure},
        {"misaligned_double", misaligned_double},
        {"uninitialized_shared", uninitialized_shared},
        {"divergent_shuffle", divergent_shuffle},
        {"own_lane", own_lane},
        {"divergent_barrier", divergent_barrier},
        {"missing_syncwarp", missing_syncwarp},
        {"host_variable", write_host},
        {"host_variable_read", read_host_variable},
        {"device_malloc", allocates},
        {"assertion", asserts},
        {"trap", traps},
        {"static_shared", large},
        {"division", divides},
        {"assembly", assembly}};
    if (simple.count(name)) simple.at(name)<<<1, kSize>>>(x);
    if (name == "too_many_locals") deep<<<1, kSize>>>(x);
    if (name == "lost_update") lost_update<<<3, kSize>>>(x);
    if (name == "no_fence") unfinished<<<3, 1>>>(x);
    if (name == "read_after_atomic") read_after_atomic<<<1, kSize>>>(reinterpret_cast<int*>(x));
    if (name == "out_of_bounds") out_of_bounds<<<1, kSize>>>(x, kSize);
    if (name == "out_of_bounds_write") out_of_bounds_write<<<1, kSize>>>(x, kSize);
    if (name == "dynamic_too_small") dynamic_too_small<<<1, kSize, kSize / 2 * sizeof(float)>>>(x);
    if (name == "uninitialized") accumulate<<<1, kSize>>>(y);
    if (name == "null_pointer") read_null<<<1, kSize>>>(nullptr, y);
    if (name == "host_pointer") read_host<<<1, kSize>>>(host, y);
    if (name == "write_constant") {
        void* p;
        cudaGetSymbolAddress(&p, constant);
        write_constant<<<1, 1>>>(static_cast<int*>(p));
    }
    if (name == "use_after_free") {
        cudaFree(x);
        read_one<<<1, kSize>>>(x, y);
    }
    if (name == "host_reads_device") host[0] = x[1];  // fault host_reads_device: the host reads x[1], which is in GPU
    if (name == "host_writes_device") std::memset(x, 0, 8);  // fault host_writes_device: the host writes x[0]
    if (name == "copy_too_long")
        cudaMemcpy(host, x + 1, sizeof host, cudaMemcpyDeviceToHost);  // fault copy_too_long: reads 256 bytes of x
    if (name == "copy_freed") {
        cudaFree(x);
        cudaMemcpy(host, x, sizeof host, cudaMemcpyDeviceToHost);  // fault copy_freed: reads x after it was freed
    }
    if (name == "too_many_threads")
        ones<<<1, 2 * 1024>>>(x);                     // fault too_many_threads: expected 1 to 1024 threads in a block
    if (name == "empty_grid") ones<<<0, kSize>>>(x);  // fault empty_grid: expected a grid of at least one block
    if (name == "too_much_shared")
        ones<<<1, kSize, 300 * 1024>>>(x);  // fault too_much_shared: expected at most 232448 bytes of shared memory
    if (name == "shared_not_allowed")
        ones<<<1, kSize, 64 * 1024>>>(x);  // fault shared_not_allowed: expected at most 49152 bytes of dynamic shared
    if (name == "wrong_direction")
        cudaMemcpy(host, x, sizeof host, cudaMemcpyHostToDevice);  // fault wrong_direction: expected GPU memory
    if (name == "memset_of_host") cudaMemset(host, 0, 4);          // fault memset_of_host: destination, got host memory
    if (name == "copy_to_null")
        cudaMemcpy(nullptr, x, 4, cudaMemcpyDeviceToDevice);  // fault copy_to_null: destination, got a null pointer
    if (name == "freed_twice") {
        cudaFree(x);
        cudaFree(x);  // fault freed_twice: cudaFree: x was freed before
    }
    cudaDeviceSynchronize();
    return 0;
}
