// The simulated GPU's interface for the code that it runs, used by the simulation's own cuda_runtime.h.
//
// A launch runs the blocks of a grid one after another, and the threads of a block as fibers: a thread runs until it
// waits for others, at a barrier or a warp's exchange, then the next one runs. The compiler reports every access to
// memory (-fsanitize=thread, linked against hooks.cpp instead of the sanitizer's runtime). Undefined behavior in CUDA
// is a fault here: the first one stops its launch, and every later launch returns its error, as on a GPU.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <tuple>
#include <type_traits>
#include <utility>

struct uint3 {
    unsigned x, y, z;
};

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
    constexpr dim3(uint3 v) : x(v.x), y(v.y), z(v.z) {}
    constexpr operator uint3() const { return {x, y, z}; }
};

namespace cudasim {

// ---- the place of a thread ----

struct BuiltIn {
    uint3 thread, block;
    dim3 block_size, grid_size;
    unsigned lane;  // of the thread in its warp
};
extern BuiltIn built_in;

// ---- launching ----

struct Config {
    dim3 grid, block;
    size_t shared;  // bytes of dynamic shared memory
    bool cooperative = false;
    Config(dim3 grid, dim3 block, size_t shared = 0, const void* = nullptr)
        : grid(grid), block(block), shared(shared) {}
};

// Runs thread(arguments) in every thread of the grid. `line` is the line of the launch in its file.
void launch(const char* kernel, const Config& config, int line, void (*thread)(void*), void* arguments, size_t bytes);

// The replacement of `kernel<<<config>>>`: a call with the arguments launches the kernel.
template <typename Kernel>
struct Launcher {
    const char* name;
    int line;
    Config config;
    Kernel kernel;

    template <typename... Arguments>
    void operator()(Arguments&&... arguments) const {
        struct Closure {
            Kernel kernel;
            std::tuple<std::decay_t<Arguments>...> arguments;
        } closure{kernel, {arguments...}};
        launch(
            name, config, line,
            [](void* p) {
                auto* const closure = static_cast<Closure*>(p);
                std::apply(closure->kernel, closure->arguments);
            },
            &closure, sizeof closure);
    }
};

template <typename Kernel>
Launcher<Kernel> launcher(const char* name, int line, Config config, Kernel kernel) {
    return {name, line, config, kernel};
}

// A literal 0 or NULL among a kernel's arguments.
struct Null {
    template <typename T>
    operator T() const {
        return T{};
    }
};

// ---- memory ----

// The running block's array with this identity, made at the first call. There are gaps between a block's arrays.
void* shared_array(const char* id, const char* name, size_t bytes, size_t element);
template <typename T>
T& shared(const char* id, const char* name) {
    return *static_cast<T*>(shared_array(id, name, sizeof(T), sizeof(std::remove_all_extents_t<T>)));
}
void* dynamic_shared(const char* name, size_t element);
void allow_dynamic_shared(size_t bytes);  // more than 48 KiB, by any kernel

// A variable of the GPU: __device__, __constant__ or __managed__.
struct Variable {
    Variable(const volatile void* address, size_t bytes, size_t element, const char* name, bool constant);
};
template <typename T>
size_t element_size(const T&) {
    return sizeof(std::remove_all_extents_t<T>);
}

// Memory of the host that is registered for the kernels of a library: they may access it.
void register_memory(const char* name, const void* begin, size_t bytes, size_t element, bool written = true);
bool unregister_memory(const void* begin = nullptr);  // one array, or all registered ones
void forget_failure();                                // so that the next launch runs again

enum class Access { Read, Write, Atomic };

// Checks and records an access; `from` is the return address of its caller.
void access(const void* address, size_t bytes, Access access, const void* from, bool is_volatile = false);

// The running thread's next operation, an atomicCAS, detects whether another thread has written there after its read.
void verify(const void* address);

// One atomic operation: returns the old value and stores f(old).
template <typename T, typename F>
__attribute__((noinline, no_sanitize("thread"))) T atomically(T* address, F f) {
    access(address, sizeof(T), Access::Atomic, __builtin_return_address(0));
    const T before = *address;
    *address = f(before);
    return before;
}

void* copy(void* to, const void* from, size_t bytes);  // memcpy and memmove
void* fill(void* to, int value, size_t bytes);         // memset

// ---- waiting for others ----

void fence(bool whole_grid);

enum class Vote { Or, And, Count };
int wait_for_block(Vote how, bool vote, int line);  // of the call
void wait_for_grid();

// The threads of a warp in `mask` exchange values of up to 16 bytes. `kind` names the operation, which must be the same
// for all. `source` is the lane whose value this one takes. Then `receive` copies a lane's value, and returns whether
// it took part: a lane that has returned does not take part, and its value is undefined.
void exchange(const char* kind, unsigned mask, const void* value, size_t bytes, unsigned source = built_in.lane);
bool receive(unsigned lane, void* value, size_t bytes);
void wait_for_warp(unsigned mask);
unsigned active_lanes();  // the lanes that wait here with this one, once no other lane of the warp can run

// Ends the thread's launch with a fault.
[[noreturn]] void fail(const char* what);
bool in_kernel();

}  // namespace cudasim
