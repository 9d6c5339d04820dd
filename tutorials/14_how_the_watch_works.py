"""
14. How the sanitizer works
===========================

Write a small sanitizer that finds data races and accesses out of bounds. **Time:**
about 25 minutes, and 45 for the exercises. **You need:** tutorial 12 and C++.

**Question.** ``sbnref lab run`` finds a missing barrier even if the result is right.
How can a program detect this on a CPU, where the threads run one after the other?

It uses the idea of every sanitizer: the compiler reports each access to memory, and a
small library keeps a record. Here you write this library, in forty lines of C++.
"""

# %%
# Calls that the compiler inserts
# -------------------------------
#
# With ``-fsanitize=thread`` a compiler inserts a call before every access to memory,
# except to local variables:

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
    """Write a file and return its path."""
    (HERE / name).write_text(text)
    return HERE / name


def cxx(*arguments):
    """Run the C++ compiler and return its output."""
    command = [compiler(), "-O1", "-g1", "-gdwarf-4", *map(str, arguments)]
    done = subprocess.run(command, cwd=HERE, check=True, capture_output=True, text=True)
    return done.stdout


ADD = "void add(float* x, const float* y) { x[0] += y[1]; }"
assembly = cxx("-fsanitize=thread", "-S", "-o", "-", save("add.cpp", ADD))
CALLS = r"(?:call|jmp|bl?)\s+_?(__tsan_\w+)"
print(re.findall(CALLS, assembly))

# %%
# There is one call for each access. Its argument is the address; ``4`` is the number of
# bytes. The first and the last call report that a function begins and ends.
#
# Usually ThreadSanitizer's library receives these calls. The linker accepts any
# functions with these names, so our library can receive them.
#
# The library
# -----------
#
# How does the library know which array an address belongs to? The program registers its
# arrays once. An address outside of them is out of bounds.
#
# When do two threads race? They race if both access one element, one of them writes,
# and nothing orders the two accesses. Barriers order accesses: everything before a
# barrier is done before anything after it begins. So the library counts the barriers.
# For each element it records the last thread that wrote it, the last thread that read
# it, and the number of barriers at that time.

WATCH = r"""
#include <cstdio>

struct Access { int thread = -1, barriers = -1; };
struct Element { Access write, read; };

float* array;
long size;
Element elements[64];
int thread, barriers;

void report(const char* event, long i, int other, void* pc) {
    std::printf("thread %d %s [%ld], %d, %p\n", thread, event, i, other, pc);
}

void access(float* address, bool writes, void* pc) {
    const long i = address - array;
    if (i < 0 || i >= size) return report("is out of bounds at", i, -1, pc);
    Element& e = elements[i];
    const auto races = [](Access a) {
        return a.barriers == barriers && a.thread != thread;
    };
    if (races(e.write)) report(writes ? "overwrites" : "reads", i, e.write.thread, pc);
    if (writes && races(e.read))
        report("writes after a read of", i, e.read.thread, pc);
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
# The threads take turns: each thread runs its part up to the barrier, then the next
# thread runs. Only this file is compiled with ``-fsanitize=thread``. With ``-no-pie``,
# the addresses in the report are the addresses in the file.

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
    """Compile and run the parts, and return the reports with their lines."""
    cxx("-fsanitize=thread", "-c", save("kernel.cpp", kernel))
    cxx("-c", save("watch.cpp", library))
    cxx("-c", f"-DBARRIER={barrier}", save("main.cpp", MAIN))
    cxx("-no-pie", "kernel.o", "watch.o", "main.o", "-o", "program")
    done = subprocess.run([HERE / "program"], capture_output=True, text=True)
    reports = [line.rsplit(", ", 2) for line in done.stdout.splitlines()]
    lines = lines_of(HERE / "program", [int(at, 16) for *_, at in reports])
    found = []
    for event, other, at in reports:
        (_, line), *_ = lines[int(at, 16)] or [("", "unknown")]
        found.append(f"{event}, line {line}; the other thread is {other}")
    return "\n".join([*found, f"exit status {done.returncode}"])


print(watch(barrier=0))

# %%
# The second part of the kernel reads elements that another thread wrote, with no
# barrier in between:

import matplotlib.pyplot as plt

figure, ax = plt.subplots(figsize=(6, 2.6))
for t in range(4):
    for start, end in (((0.3, t), (0.8, t)), ((1.15, t), (1.68, 3 - t))):
        ax.annotate("", end, start, arrowprops={"arrowstyle": "->", "color": "C0"})
    for x, name in enumerate((f"thread {t} writes", f"s[{t}]", f"thread {t} reads")):
        ax.text(x, t, name, ha="center", va="center")
ax.set(xlim=(-0.4, 2.4), ylim=(3.5, -0.5))
ax.axis("off")
ax.set_title("Each thread reads an element that another thread wrote")
plt.show()

# %%
# The threads ran in order, so every value was right, and the exit status is 0. On a GPU
# each warp runs at its own pace, and the value may be an old one. The library checks
# the order that the program *guarantees*, not the order of this run. With a barrier:

print(watch(barrier=1))

# %%
# The other kind of error is an index that is off by one:

print(watch(barrier=1, kernel=KERNEL.replace("3 - t", "4 - t")))

# %%
# The step to ``sbnref lab run``
# ------------------------------
#
# The simulation in ``csrc/simulation/`` is a larger version of this library.
# ``watch.cpp`` decides whether two accesses race. ``arrays.cpp`` knows the arrays and
# which of their elements were ever written. Between blocks, fences and atomic
# operations order accesses, and the lanes of a warp have their own rules. Threads are
# fibers, so a barrier may stand anywhere. This is the kernel in CUDA; thread 0 reads
# before thread 3 has begun:

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
# 2. A compiler may keep a value in a register, or drop an access. Count the calls in
#    the assembly of ``float twice(float* s) { *s += 1; *s += 1; return *s; }`` at
#    ``-O0`` and at ``-O2``. Which accesses does the library miss at ``-O2``? Does nvcc
#    make them?
# 3. Two threads that only read do not race. Show that the library agrees. Which race
#    does it report if it treats reads as writes?
