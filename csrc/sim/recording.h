// What the threads of small launches do, one thing after the other. It is there where SBNREF_RECORDING is defined,
// which goes with -O0 -g1: where an instruction stands is told by the calls that led to it, and these are read off the
// stack. Elsewhere nothing of it is, and nothing takes time.
#pragma once

#include <cstdint>
#include <vector>

namespace cudasim {

enum class Act { Read, Write, Ticket, ReadShared, WriteShared, Shuffle, Barrier };

#ifdef SBNREF_RECORDING

void record_launch(const char* kernel);

// The running thread begins: `frame` is that of the function from which it calls the kernel.
void record_thread(const void* frame);

// The running thread accesses `bytes` bytes from `offset` on of an array of `size` bytes: at address `array`, or in
// shared memory and called `name`. In a shuffle, `offset` is the lane that it reads from.
void record(
    Act act, const void* array = nullptr, const char* name = "", int64_t size = 0, int64_t offset = 0, int bytes = 0);

// The addresses to which the functions return that the running thread is in, innermost first, or that a waiting one was
// in when it had this frame; and where in this library such an address is.
std::vector<const void*> calls();
std::vector<const void*> calls(void* frame, unsigned thread);
int64_t offset_in_library(const void* address);

#else

inline void record_launch(const char*) {}
inline void record_thread(const void*) {}
inline void record(Act, const void* = nullptr, const char* = "", int64_t = 0, int64_t = 0, int = 0) {}

#endif

}  // namespace cudasim
