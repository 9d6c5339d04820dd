// Who wrote and who read each element of global memory in a launch, where kernels are to be graded: reads of what
// nobody wrote, and accesses of two threads that nothing puts in an order. It is there where SBNREF_RECORDING is
// defined, and costs nothing elsewhere.
//
// An order is put by a barrier, between threads of a block; by the end of a launch; and between blocks by a ticket:
// what a block wrote before a __threadfence and a ticket is seen by a block that took a later one of the same counter
// and had its __threadfence after it.
#pragma once

#include <cstdint>

namespace cudasim {

enum class Access;

#ifdef SBNREF_RECORDING

void watch_launch();
void watch_block();
// The running thread accesses `count` elements of `bytes` each, from `address` on; `epoch` barriers have passed.
void watch(uintptr_t address, int count, int bytes, Access access, unsigned epoch);
void watch_fence();

// The running thread waits for others.
void watch_wait();

// Notes by which calls a thread came to what was refused: the running one, or one that waits for what will not come.
void note_refusal();
void note_stuck(int thread);

#else

inline void watch_launch() {}
inline void watch_block() {}
inline void watch(uintptr_t, int, int, Access, unsigned) {}
inline void watch_fence() {}
inline void watch_wait() {}
inline void note_refusal() {}
inline void note_stuck(int) {}

#endif

}  // namespace cudasim
