// The CUDA execution model on one CPU thread, as far as the kernels use it.
//
// A launch runs its blocks one after another. The threads of a block are fibers: each runs until it has to wait for
// others, at a barrier or a shuffle, then the next one runs. The order of the blocks and of the threads can be chosen,
// since a kernel's result must not depend on it. What a GPU leaves undefined is an error here that names the kernel,
// the block and the thread: accesses out of bounds or misaligned, shared memory read before it is written or shared
// without a barrier in between, barriers and shuffles that only some threads reach.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace cudasim {

struct Index {
    unsigned x;
};

// ---- launching ----

// Runs `thread` in every thread of every block. Launches of several threads of the host run one after another.
void launch(const char* kernel, int64_t blocks, int threads, int64_t shared_bytes, const std::function<void()>& thread);

// "ascending", "descending" or "random:SEED": the order in which blocks and, within them, threads take their turns.
void set_order(const std::string& order);

// Throws, saying which thread of which block of which kernel did it.
[[noreturn]] void fail(const std::string& what);

// ---- global memory ----

enum class Access { Read, Write, Ticket };  // a ticket is taken by an atomicInc; counted as a write

// Called at every access to `count` elements of `bytes` each from `array[i]` on, where the array has `size` elements.
void check_access(const void* array, int64_t size, int64_t i, int count, int bytes, Access access);

// What a launch did to global memory.
struct Traffic {
    std::string kernel;
    int64_t bytes_read = 0, bytes_written = 0;  // asked for by the threads
    int64_t sectors = 0;                        // of 32 bytes, that the accesses of the warps touched
};

// Starts counting afresh, or returns what was counted since, one entry per launch, and stops.
void start_counting();
std::vector<Traffic> stop_counting();

// Told, while counting, of every access instruction of every warp: in which launch, which 32-byte sectors of memory it
// touched, and how often the warp had executed that instruction before. A model of a cache can be fed from it.
using Observer = std::function<void(size_t launch, unsigned block, int time, const std::set<uintptr_t>& sectors)>;
void set_observer(Observer observer);

// ---- shared memory ----

// Who has accessed an element of shared memory since the last barrier of the block.
struct SharedElement {
    bool written = false;
    int writer = -1, reader = -1;  // threads; reader is kSeveral for more than one
    unsigned write_epoch = 0, read_epoch = 0;
};
// Called at every access to element i of a shared array, of `bytes` bytes.
void check_shared(const char* name, std::vector<SharedElement>& elements, int64_t i, int bytes, Access access);

struct SharedBase {
    virtual ~SharedBase() = default;
};

// An array in shared memory. Elements are read and written whole.
template <typename T>
class Shared : public SharedBase {
   public:
    Shared(const char* name, int64_t size) : name_(name), values_(size), elements_(size) {
        static_assert(std::is_trivially_copyable_v<T>);
        std::memset(static_cast<void*>(values_.data()), 0xff, size * sizeof(T));  // garbage
    }

    struct Element {
        Shared& array;
        int64_t i;
        operator T() const {
            check_shared(array.name_, array.elements_, i, sizeof(T), Access::Read);
            return array.values_[i];
        }
        void operator=(const T& value) {
            check_shared(array.name_, array.elements_, i, sizeof(T), Access::Write);
            array.values_[i] = value;
        }
    };
    Element operator[](int64_t i) { return {*this, i}; }

   private:
    const char* name_;
    std::vector<T> values_;
    std::vector<SharedElement> elements_;
};

// The running block's shared array of this name; null where this thread is the first to ask for it.
std::unique_ptr<SharedBase>& shared_slot(const char* name);
int64_t dynamic_shared_bytes();

template <typename T>
Shared<T>& shared_array(const char* name, int64_t size) {
    std::unique_ptr<SharedBase>& slot = shared_slot(name);
    if (slot == nullptr) slot = std::make_unique<Shared<T>>(name, size);
    return static_cast<Shared<T>&>(*slot);
}

template <typename T>
Shared<T>& dynamic_shared_array(const char* name) {
    return shared_array<T>(name, dynamic_shared_bytes() / static_cast<int64_t>(sizeof(T)));
}

// ---- barriers, fences and shuffles ----

// Barriers that the running block has passed.
unsigned current_epoch();

void fence();

// Waits for all threads of the block; returns whether any of them voted for it.
bool wait_for_block(bool vote);

// Waits for all threads of the warp; returns what `lane` gave. It stays valid until the next exchange.
const void* exchange(const void* value, size_t bytes, unsigned lane);

}  // namespace cudasim

// ---- CUDA's names for it ----

extern cudasim::Index threadIdx, blockIdx, blockDim, gridDim;

inline void __syncthreads() { cudasim::wait_for_block(false); }
inline int __syncthreads_or(int vote) { return cudasim::wait_for_block(vote != 0); }
inline void __threadfence() { cudasim::fence(); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

template <typename T>
T __shfl_down_sync(unsigned, T value, unsigned delta) {
    const unsigned lane = threadIdx.x % 32, source = lane + delta < 32 ? lane + delta : lane;
    std::memcpy(&value, cudasim::exchange(&value, sizeof(T), source), sizeof(T));
    return value;
}

inline unsigned atomicInc(unsigned* address, unsigned last) {
    const unsigned before = *address;
    *address = before >= last ? 0 : before + 1;
    return before;
}

// The host rounds every operation by itself (compile with -ffp-contract=off).
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline float __fdividef(float a, float b) { return a / b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
