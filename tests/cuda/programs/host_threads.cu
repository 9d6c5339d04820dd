// Threads of the host share the GPU.
#include <thread>

#include "program.h"

__global__ void add_one(int* x) { ++x[threadIdx.x]; }

int main() {
    std::vector<std::thread> threads;
    for (int t = 0; t < 4; ++t)
        threads.emplace_back([t] {
            for (int i = 0; i < 20; ++i) {
                int* const x = on_gpu(std::vector<int>(64, t));
                add_one<<<1, 64>>>(x);
                EXPECT(take(x, 64)[63] == t + 1);
            }
        });
    for (std::thread& thread : threads) thread.join();
}
