// Sums of rows, once right and then wrong in the ways that kernels go wrong. The simulation has to catch every one.
#include <string>

#include "device.cuh"

namespace sbnref {
namespace {

enum class Mistake {
    None,
    MissingBarrier,     // shared memory is read while others still write it
    OffByOneTail,       // the last thread reads one element too many
    EarlyReturn,        // some threads leave, the others wait for them at the barrier
    PartialShuffle,     // only half of a warp shuffles
    Uninitialized,      // shared memory is read that nobody wrote
    Misaligned,         // a vector is loaded from an odd element
    SharedOutOfBounds,  // one element past the end of shared memory
    OrderOfBlocks,      // each block adds to what the one before it left
};

__global__ void row_sums(Mistake mistake, int columns, Array<const float> x, Array<float> sums) {
    SHARED_ARRAY(float, partial, 64);
    const int thread = threadIdx.x, row = blockIdx.x, threads = blockDim.x;
    const bool tail = mistake == Mistake::OffByOneTail;

    if (mistake == Mistake::EarlyReturn && thread >= 48) return;
    if (mistake == Mistake::Misaligned) load_vector<4>(x, 1);

    float sum = 0;
    for (int i = thread; i < columns + tail; i += threads) sum += load(x, row * columns + i);
    if (mistake != Mistake::Uninitialized || thread % 2 == 0) partial[thread] = sum;
    if (mistake == Mistake::SharedOutOfBounds && thread == 0) partial[threads] = 0;
    if (mistake == Mistake::PartialShuffle && thread % 32 < 16) __shfl_down_sync(~0u, sum, 1);
    if (mistake != Mistake::MissingBarrier) __syncthreads();

    if (thread != 0) return;
    for (int t = 1; t < threads; ++t) sum += partial[t];
    if (mistake == Mistake::OrderOfBlocks && row > 0) sum += load(Array<const float>{sums.data, sums.size}, row - 1);
    store(sums, row, sum);
}

}  // namespace
}  // namespace sbnref

// Returns what the simulation said, or an empty string.
extern "C" const char* run(int mistake, const char* order, int rows, int columns, const float* x, float* sums) {
    using namespace sbnref;
    static std::string said;
    Plan plan{};
    plan.tiles = rows, plan.splits = 1, plan.threads = 64;
    try {
        cudasim::set_order(order);
        launch(
            "row_sums", row_sums, plan, 0, nullptr, static_cast<Mistake>(mistake), columns,
            Array<const float>{x, rows * columns}, Array<float>{sums, rows});
        said = "";
    } catch (const std::exception& error) {
        said = error.what();
    }
    return said.c_str();
}
