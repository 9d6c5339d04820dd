// Shared by the parts of the simulation: the place of a thread, the arrays that it may access, the first fault.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "machine.h"

namespace cudasim {

constexpr unsigned kWarp = 32;

// ---- launch.cpp: the place of a thread ----

extern __thread bool running;  // whether a kernel's code runs, not the host's or the simulation's
extern size_t dynamic_bytes;   // of the launch's dynamic shared memory

struct Position {
    uint32_t launch = 0, block = 0;  // launches and grid barriers so far, from 1 on; the block in its grid
    uint32_t epoch = 0;              // barriers that the block has passed
    uint32_t tick = 0;               // times that threads of the warp have waited for each other
    uint16_t thread = 0;             // in its block
};

constexpr size_t kStackBytes = 128 * 1024;  // of a thread

// The running thread.
struct Here : Position {
    uintptr_t stack = 0;            // its beginning
    const uint32_t* met = nullptr;  // by lane of the warp: the tick when it and this thread last waited for each other
    int accesses = 0;               // since it last waited
};
extern Here here;

uint3 thread_index(unsigned thread);
uint3 block_index(unsigned block);
std::string thread_in_words(size_t thread);
std::string block_in_words(unsigned block);

inline bool is_own_stack(uintptr_t address) { return address - here.stack < kStackBytes; }
bool is_any_stack(uintptr_t address);  // of the threads of the block
bool is_argument(uintptr_t address);   // of the launch

// Threads of the host take turns to run kernels and to change arrays.
using Turn = std::unique_lock<std::recursive_mutex>;
Turn take_turn();

void give_way();
inline void pass_time() {  // lets other threads run now and then, in case this one never waits
    constexpr int kLongSpin = 100'000;
    if (++here.accesses == kLongSpin) give_way();
}

void enter_function(const void* from);
void leave_function();
const void* caller_of_function();  // the return address of the running function

// The calls that led the running thread to an instruction, innermost first, as return addresses.
using Site = std::vector<const void*>;
Site site(const void* from);

[[noreturn]] void fault(const std::string& what, const Site& at, const Site& other = {});
[[noreturn]] void fault(const std::string& what, const void* from, const Site& other = {});

// ---- arrays.cpp: the memory that kernels may access ----

enum class Space { Global, Shared, Constant };

// A visit to an element. If several threads of a warp read it, `lanes` has their lanes; `thread` is kSeveral if they
// are of several warps.
struct Visit : Position {
    static constexpr uint16_t kSeveral = 0xffff;
    uint16_t fences = 0;  // of the thread so far, in this launch
    uint32_t lanes = 0, site = 0;
};
struct Element {
    Visit write, read;
};

struct Array {
    uintptr_t begin = 0, end = 0;
    std::string name;
    Space space = Space::Global;
    size_t element = 1;                                    // bytes of the type, if known
    bool known = false;                                    // whether all of it has been written
    bool freed = false, host = false, registered = false;  // host: the host may access it too
    Site made;

    // For each granule, the size of the smallest access so far: whether the host has written it, and the last visits of
    // kernels.
    size_t granule = 4;
    std::vector<bool> written;
    std::vector<std::unique_ptr<Element[]>> chunks;

    size_t size() const { return end - begin; }
    bool holds(uintptr_t address) const { return address - begin < size(); }
    std::string in_words(uintptr_t address, size_t bytes) const;  // such as x[3]
    void refine(size_t bytes);
    size_t chunk_size() const;
    Element& at(size_t granule);
    bool is_written(size_t granule) const { return granule < written.size() && written[granule]; }
    void set_written(uintptr_t address, size_t bytes);
};

// The shared memory of a block.
struct Arena {
    std::unique_ptr<char[]> memory;
    std::vector<std::pair<const char*, std::unique_ptr<Array>>> arrays;  // by the address that identifies each
    size_t used = 0, bytes = 0, fixed = 0;  // of the memory; of the arrays, and of those of fixed sizes
};
Arena& arena();  // of the running block

void* allocate(size_t bytes, const std::string& name, size_t element, bool host, Site made);
bool release(void* begin);  // whether it was an array
Array* find(uintptr_t address);
const std::vector<std::unique_ptr<Array>>& allocations();

// ---- watch.cpp: races, and reads of uninitialized memory ----

extern bool watching, strict;          // watching: global memory too; shared memory always is. strict: see watch.cpp
uint32_t number_of(const void* from);  // of the running thread's site
const Site& site_of(uint32_t number);
void watch(
    Array& array, uintptr_t address, size_t bytes, Access access, const void* from, uint32_t number, bool is_volatile);
void settle();  // decide whether the running thread's last access was a race
void expect_misaligned(uintptr_t address, size_t alignment);  // of the next access there, if it is as wide
Site last_write(Array& array, uintptr_t address);
void watch_fence();
void watch_barrier(uint32_t block);
void forget_order();  // after a barrier of all blocks

// ---- counting.cpp, recording.cpp ----

void count(const Array& array, uintptr_t address, size_t bytes, Access access, uint32_t site);
void count_launch(const char* kernel, const Config& config, int line);
void count_block(unsigned block, size_t shared_bytes);

extern bool recording;
enum class Act { Read, Write, Atomic, ReadShared, WriteShared, Shuffle, Barrier };
void record_launch(const char* kernel, const Config& config, int line);
void record(Act act, const Array* array, int64_t offset, size_t bytes, const void* from);

// ---- report.cpp: the first fault, and the rest of the report ----

struct Faulty {};  // thrown to end a launch
void note_fault(const std::string& what, const Site& at, const Site& other);
void note_failed_call(const std::string& what, const Site& at);  // a call that returns an error
void handle_failed_calls();                                      // the program has read the error
bool has_failed();
const std::string& failure();
void end_launch();  // with its fault, if there is one
void set_invalid_configuration();

}  // namespace cudasim
