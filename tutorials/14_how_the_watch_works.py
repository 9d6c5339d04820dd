"""
14. How the watch works
=======================

**Question.** ``sbnref lab run`` finds a missing barrier even if the result is right. How
can a program that runs on a CPU, one thread after the other, know?

It uses the idea behind every sanitizer: the compiler reports each access to memory, and a
small library keeps books. Here you write that library, in forty lines of C++.
"""

# %%
# The compiler reports
# --------------------
#
# With ``-fsanitize=thread`` a compiler inserts a call before every access to memory that
# is not a local variable:

import re
import subprocess
import tempfile
from pathlib import Path

from sbnref.impls.compiling import compiler
from sbnref.lab.lines import lines_of
from sbnref.lab.run import run

folder = tempfile.TemporaryDirectory()
HERE = Path(folder.name)


def save(name, text):
    """Write a file, and return its path."""
    (HERE / name).write_text(text)
    return HERE / name


def cxx(*arguments):
    """Run the C++ compiler, and return what it prints."""
    command = [compiler(), "-O1", "-g1", "-gdwarf-4", *map(str, arguments)]
    done = subprocess.run(command, cwd=HERE, check=True, capture_output=True, text=True)
    return done.stdout


ADD = "void add(float* x, const float* y) { x[0] += y[1]; }"
assembly = cxx("-fsanitize=thread", "-S", "-o", "-", save("add.cpp", ADD))
CALLS = r"(?:call|jmp|bl?)\s+_?(__tsan_\w+)"
print(re.findall(CALLS, assembly))

# %%
# One call for each access, with its address as the argument; ``4`` is the number of bytes.
# The first and the last one report that a function begins and ends.
#
# Usually ThreadSanitizer's library answers these calls. The linker takes any functions of
# these names, so ours can answer.
#
# The library
# -----------
#
# What is at an address? The program says once where its arrays are. An address in none
# of them is out of bounds.
#
# Do two threads race? They do if both access one element, one of them writes, and nothing
# orders the two. Barriers order: what happens before a barrier is done before anything
# behind it begins. So count the barriers. An element remembers which thread wrote it
# last and which one read it last, and how many barriers there had been by then.

WATCH = r"""
#include <cstdio>

struct Access { int thread = -1, barriers = -1; };
struct Element { Access write, read; };

float* array;
long size;
Element elements[64];
int thread, barriers;

void report(const char* what, long i, int other, void* from) {
    std::printf("thread %d %s [%ld], %d, %p\n", thread, what, i, other, from);
}

void access(float* address, bool writes, void* from) {
    const long i = address - array;
    if (i < 0 || i >= size) return report("is out of bounds at", i, -1, from);
    Element& e = elements[i];
    const auto races = [&](Access a) { return a.barriers == barriers && a.thread != thread; };
    if (races(e.write)) report(writes ? "overwrites" : "reads", i, e.write.thread, from);
    if (writes && races(e.read)) report("writes what was read:", i, e.read.thread, from);
    (writes ? e.write : e.read) = {thread, barriers};
}

extern "C" {
void __tsan_read4(float* p) { access(p, false, __builtin_return_address(0)); }
void __tsan_write4(float* p) { access(p, true, __builtin_return_address(0)); }
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_init() {}
}
"""

# %%
# A kernel of four threads
# ------------------------
#
# The threads take turns: each runs its part up to the barrier, then the next one. Only
# this file is compiled with ``-fsanitize=thread``. ``-no-pie`` makes the addresses in the
# report those of the file.

KERNEL = """
void first(float* s, int t) { s[t] = t; }

float second(float* s, int t) {
    return s[3 - t];
}
"""
MAIN = r"""
extern float* array;
extern long size;
extern int thread, barriers;
void first(float*, int);
float second(float*, int);

int main() {
    float s[5], y[4];
    array = s, size = 4;
    for (thread = 0; thread < 4; ++thread) first(s, thread);
    barriers += BARRIER;
    for (thread = 0; thread < 4; ++thread) y[thread] = second(s, thread);
    return y[0] == 3 && y[3] == 0 ? 0 : 1;
}
"""


def watch(barrier, kernel=KERNEL, library=WATCH):
    """Compile the parts, run them, and return the reports with their lines."""
    cxx("-fsanitize=thread", "-c", save("kernel.cpp", kernel))
    cxx("-c", save("watch.cpp", library))
    cxx("-c", f"-DBARRIER={barrier}", save("main.cpp", MAIN))
    cxx("-no-pie", "kernel.o", "watch.o", "main.o", "-o", "program")
    done = subprocess.run([HERE / "program"], capture_output=True, text=True)
    reports = [line.rsplit(", ", 2) for line in done.stdout.splitlines()]
    lines = lines_of(HERE / "program", [int(at, 16) for *_, at in reports])
    found = []
    for what, other, at in reports:
        (_, line), *_ = lines[int(at, 16)] or [("", "unknown")]
        found.append(f"{what}, line {line}; the other thread is {other}")
    return "\n".join([*found, f"exit status {done.returncode}"])


print(watch(barrier=0))

# %%
# The second part reads what another thread wrote, with no barrier between them. It ran
# in order here, so each value that it read was the right one, and the exit status is 0.
# On a GPU the warps run at their own pace, and the value may be an old one. The watch
# looks at the order that the program *guarantees*, not at the one in which it happened to
# run. With a barrier:

print(watch(barrier=1))

# %%
# The other kind of fault, an index that is off by one:

print(watch(barrier=1, kernel=KERNEL.replace("3 - t", "4 - t")))

# %%
# From here to ``sbnref lab run``
# -------------------------------
#
# The simulation in ``csrc/simulation/`` is this library, grown up: ``watch.cpp`` decides
# whether two accesses race, ``arrays.cpp`` knows what is at an address and what was ever
# written. Blocks have an order of their own, in which fences and atomic operations
# count, and so have the lanes of a warp. Threads are fibers, so that a barrier may stand
# anywhere. The same kernel in CUDA, where thread 0 reads before thread 3 has begun:

CUDA = """
__global__ void turn(float* y) {
    __shared__ float s[4];
    s[threadIdx.x] = threadIdx.x;
    y[threadIdx.x] = s[3 - threadIdx.x];
}

int main() {
    float* y;
    cudaMalloc(&y, 4 * sizeof(float));
    turn<<<1, 4>>>(y);
    cudaFree(y);
}
"""
report = run(save("turn.cu", CUDA))
report

# %%
# Exercises
# ---------
#
# 1. Let the library find reads of elements that were never written. Which access of the
#    kernel does it report if ``first`` skips thread 2?
# 2. A compiler may keep a value in a register, or drop an access. Count the calls in the
#    assembly of ``float twice(float* s) { *s += 1; *s += 1; return *s; }`` at ``-O0`` and at
#    ``-O2``. Which accesses does the watch no longer see, and does nvcc make them?
# 3. Two threads that only read do not race. Show that the library agrees, and what it
#    reports if it takes reads for writes.
