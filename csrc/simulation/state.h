// What the parts of the simulation share: where a thread is, the arrays that it may access, the first fault.
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

// ---- launch.cpp: where a thread is ----

extern __thread bool running;  // a kernel's code, rather than the host's or the simulation's
extern size_t dynamic_bytes;   // of shared memory, of the launch

struct Position {
    uint32_t launch = 0, block = 0;  // launches and grid barriers so far, from 1 on; the block in its grid
    uint32_t epoch = 0;              // barriers that the block has passed
    uint32_t tick = 0;               // times that threads of the warp have waited for each other
    uint16_t thread = 0;             // in its block
};

constexpr size_t kStackBytes = 128 * 1024;  // of a thread

// The running thread.
struct Here : Position {
    uintptr_t stack = 0;            // where it begins
    const uint32_t* met = nullptr;  // the ticks at which lanes of the warp and it have last waited for each other
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
inline void pass_time() {  // lets others go on now and then, where a thread does not wait
    constexpr int kLongSpin = 100'000;
    if (++here.accesses == kLongSpin) give_way();
}

void enter_function(const void* from);
void leave_function();
const void* caller_of_function();  // where the running function returns to

// The calls by which the running thread came to an instruction, innermost first: the addresses to which they return.
using Site = std::vector<const void*>;
Site site(const void* from);

[[noreturn]] void fault(const std::string& what, const Site& at, const Site& other = {});
[[noreturn]] void fault(const std::string& what, const void* from, const Site& other = {});

// ---- arrays.cpp: what kernels may access ----

enum class Space { Global, Shared, Constant };

// A visit to an element. Of several threads that read it, `lanes` says which of a warp; `thread` is kSeveral where they
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
    size_t element = 1;                              // bytes, as far as the type is known
    bool known = false;                              // whether all of it has been written
    bool freed = false, host = false, lent = false;  // host: the host may access it too
    Site made;

    // By granules, the smallest accesses so far: what the host has written, and the last visits of kernels.
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
    size_t used = 0, bytes = 0;                                          // of the memory; of the arrays
};
Arena& arena();  // of the running block

void* allocate(size_t bytes, const std::string& name, size_t element, bool host, Site made);
bool release(void* begin);  // whether it was an array
Array* find(uintptr_t address);
const std::vector<std::unique_ptr<Array>>& allocations();

// ---- watch.cpp: races, and reads of what was not written ----

extern bool watching, strict;          // watching: global memory too; shared memory always is. strict: see watch.cpp
uint32_t number_of(const void* from);  // of the running thread's site
const Site& site_of(uint32_t number);
void watch(
    Array& array, uintptr_t address, size_t bytes, Access access, const void* from, uint32_t number, bool is_volatile);
void settle();  // what the running thread did last has been done, and nothing of it follows
void expect_misaligned(uintptr_t address, size_t alignment);  // of the next access there, if it is as wide
Site last_write(Array& array, uintptr_t address);
void watch_fence();
void watch_barrier(uint32_t block);
void forget_order();  // where all blocks have met

// ---- counting.cpp, recording.cpp ----

void count(const Array& array, uintptr_t address, size_t bytes, Access access, uint32_t site);
void count_launch(const char* kernel, const Config& config, int line);
void count_block(unsigned block, size_t shared_bytes);

extern bool recording;
enum class Act { Read, Write, Atomic, ReadShared, WriteShared, Shuffle, Barrier };
void record_launch(const char* kernel, const Config& config, int line);
void record(Act act, const Array* array, int64_t offset, size_t bytes, const void* from);

// ---- report.cpp: the first fault, and what else there is to report ----

struct Faulty {};  // thrown to end a launch
void note_fault(const std::string& what, const Site& at, const Site& other);
void note_refused(const std::string& what, const Site& at);  // a call that returns an error
void handle_refused();                                       // the program has asked for the error
bool has_failed();
const std::string& failure();
void end_launch();  // with its fault, if there is one
void set_invalid_configuration();

}  // namespace cudasim
