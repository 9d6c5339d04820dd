// Run the kernels on threads that ThreadSanitizer tracks; it does not see the barriers of OpenMP, which PyTorch uses.
// Print nothing and return 0 if the results are bitwise equal for every number of threads.
#include <cstdio>
#include <random>
#include <thread>

#include "cpu/stages.h"

using namespace sbnref;
using namespace sbnref::cpu;

static int64_t threads = 1;

namespace sbnref::cpu {
int64_t last_level_cache() { return 1 << 18; }  // small, so that outputs are streamed

void in_parallel(int64_t count, int64_t, const std::function<void(int64_t, int64_t)>& f) {
    std::vector<std::thread> running;
    for (int64_t t = 0; t < threads; ++t) {
        const int64_t begin = count * t / threads, end = count * (t + 1) / threads;
        if (begin < end) running.emplace_back([=, &f] { f(begin, end); });
    }
    for (std::thread& thread : running) thread.join();
}
}  // namespace sbnref::cpu

// Memory aligned to a cache line, like the memory of a tensor.
struct Memory {
    explicit Memory(int64_t size) : size(size), bytes(size + 64) {
        std::mt19937 random(0);
        for (int64_t i = 0; i < size; ++i) data()[i] = static_cast<char>(random() % 60);
    }
    char* data() {
        const auto start = reinterpret_cast<uintptr_t>(bytes.data());
        return bytes.data() + (64 - start % 64) % 64;
    }
    std::vector<char> copy() { return {data(), data() + size}; }

    int64_t size;
    std::vector<char> bytes;
};

static std::vector<std::vector<char>> step(const Shape& shape, Dtype dtype) {
    const int64_t size = shape.size(), C = shape.channels, bytes = size * (dtype == Dtype::Double ? 8 : 4);
    Memory x(bytes), dy(bytes), y(bytes), dx(bytes), total(24 * C + 16), saved(32 * C), sums(16 * C);
    Memory mean(4 * C), var(4 * C);
    int64_t steps = 3;
    const auto elements = [&](Memory& m) { return Buffer{m.data(), size, dtype, 1}; };
    const auto numbers = [&](Memory& m, int64_t n) { return Buffer{m.data(), n, Dtype::Double, 1}; };
    const auto parameters = [&](Memory& m) { return Buffer{m.data(), C, Dtype::Float, 1}; };
    const Buffer payload = numbers(total, 3 * C + 2), kept = numbers(saved, 4 * C), sent = numbers(sums, 2 * C);

    forward_stats(shape, {elements(x), 1, payload});
    forward_apply(
        shape, {elements(x),
                payload,
                1,
                {},
                {},
                1e-5,
                parameters(mean),
                parameters(var),
                &steps,
                nullptr,
                true,
                0,
                elements(y),
                kept});
    backward_stats(shape, {elements(dy), elements(x), kept, sent});
    backward_apply(shape, {elements(dy), elements(x), sent, kept, {}, 1e-3, elements(dx)});
    return {y.copy(), dx.copy(), total.copy(), saved.copy(), sums.copy(), mean.copy(), var.copy()};
}

int main() {
    for (const Shape& shape :
         {Shape{3, 5, 9001}, {70, 130, 49}, {3, 1030, 5}, {900, 700, 1}, {300, 900, 1}, {20000, 3, 1}}) {
        for (const Dtype dtype : {Dtype::Half, Dtype::BFloat16, Dtype::Float, Dtype::Double}) {
            threads = 1;
            const auto want = step(shape, dtype);
            for (const int64_t count : {2, 3, 7}) {
                threads = count;
                if (step(shape, dtype) != want) {
                    std::printf(
                        "(%ld, %ld, %ld): %ld threads give other bits\n", long(shape.outer), long(shape.channels),
                        long(shape.inner), long(count));
                    return 1;
                }
            }
        }
    }
}
