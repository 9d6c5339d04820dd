r"""
11. From formula to CPU loop
============================

Follow a C++ loop from the bare formula to the memory speed of a CPU in six steps, and
time the gain of each step. **Time:** about 60 minutes, and 90 for the exercises. **You
need:** tutorial 7, C++, and a C++ compiler.

**Question.** Normalizing takes a handful of operations per number. Which changes make
loops in C++ as fast as a CPU's memory allows, and how do you know that you are there?

.. math::
    \mu = \frac 1m \sum_i x_i, \qquad v = \frac 1m \sum_i (x_i - \mu)^2, \qquad
    y_i = \frac{x_i - \mu}{\sqrt{v + \varepsilon}}.

The steps are a ladder of six rungs; each rung adds one idea. They are in
``tutorials/kernels/cpu/`` and compute the forward pass in float32, without
:math:`\gamma`, :math:`\beta` and running statistics, on contiguous tensors (N, C, \*).
Tutorial 5 climbs a ladder for GPUs by counting. This tutorial times every rung on the
machine that runs this page. It runs from a checkout and compiles the rungs the first
time.
"""

# %%
# A yardstick: the copy
# ---------------------
#
# A loop can normalize a channel only after it has seen all of the channel. In a
# synchronized layer, the all-reduce for all channels stands between the two stages. So
# the layer reads x twice and writes y once. A copy reads once, writes once, and
# computes nothing, which makes it a yardstick. If memory is the limit, normalizing
# takes about one and a half copies. If it takes many copies, something else is the
# limit.
#
# Runs of the copy alternate with runs of the rung, on equally many threads, so a
# disturbance affects both. Times are medians. Both allocate their output from memory
# that the process keeps, because mapping fresh pages can take as long as filling them.

import statistics

import torch
from kernels import cpu_ladder

import sbnref

torch.manual_seed(0)
x = torch.randn(512, 32, 28, 28) + 1  # 49 MiB
far = x[:16] + 1000  # a mean of a thousand standard deviations
outlier = far.clone()
outlier[0, :, 0, 0] = 0  # and each channel begins with a value that is far from it

THREADS = torch.get_num_threads()


def reference(x):
    """Return the result that every rung must compute, in the precision of x."""
    return sbnref.functional.sync_batch_norm(
        x, None, None, training=True, impl="reference"
    )


def error(name, x):
    """Return the largest error of an output."""
    y = cpu_ladder.run(name, x, threads=THREADS)
    return (y.double() - reference(x.double())).abs().max().item()


def climb(name, threads=1):
    """Check a rung, time it beside the copy, and print its errors."""
    y = cpu_ladder.run(name, x, threads=threads)
    torch.testing.assert_close(y, reference(x), rtol=1e-3, atol=1e-3)
    times = cpu_ladder.times(x, threads, seconds=1, only=("copy", name))
    copy, median = (statistics.median(times[key]) for key in ("copy", name))
    print(f"{1e3 * median:.1f} ms, {median / copy:.1f} copies, threads: {threads}")
    print(
        f"largest error: {error(name, x):.0e}; at a mean of 1000 deviations "
        f"{error(name, far):.0e}, with an outlier in front {error(name, outlier):.0e}"
    )


# %%
# All rungs share the tensor and the affine map that normalizes a channel. The map takes
# a mean in float64 and keeps its precision, although all arithmetic on elements is
# float32 (:doc:`/derivations/precision`).
#
# .. literalinclude:: ../../tutorials/kernels/cpu/ladder.h
#    :language: cpp
#    :start-after: namespace sbnref::cpu::ladder {
#    :end-before: // ---- from rung 3 on
#
# .. literalinclude:: ../../tutorials/kernels/cpu/ladder.cpp
#    :language: cpp
#    :start-after: namespace sbnref::cpu::ladder {
#    :end-before: // ---- from rung 3 on
#
# The rungs are compiled with the flags of the package's own kernels, such as ``-O3``,
# and with ``-fno-tree-vectorize``: the machine code has vectors only where the source
# has them.
#
# Rung 1: naive
# -------------
#
# This rung is the formula, word by word.
#
# .. literalinclude:: ../../tutorials/kernels/cpu/1_naive.cpp
#    :language: cpp
#    :start-after: namespace sbnref::cpu::ladder {
#    :end-before: }  // namespace sbnref

climb("1 naive")

# %%
# Memory is not the limit, because the copy uses it, too. The number of additions is not
# the limit either: a core can start several additions in every cycle. But an addition
# takes some cycles to finish, and here each addition waits for the one before it. This
# chain of additions is the limit. The compiler may not break it up, because in floating
# point another order of additions gives another result.
#
# The chain also costs accuracy. Half way through a channel the sum is a large number,
# and each further addition is rounded to its last place.
#
# Rung 2: one pass
# ----------------
#
# This rung computes both sums in one pass. With deviations from zero, its formula would
# suffer from cancellation (:doc:`/learn/07_numerics_that_break`). With deviations from
# a pivot near the mean little cancels, and any element of the channel is likely to be
# near.
#
# .. literalinclude:: ../../tutorials/kernels/cpu/2_one_pass.cpp
#    :language: cpp
#    :start-after: namespace sbnref::cpu::ladder {
#    :end-before: }  // namespace sbnref

climb("2 one pass")

# %%
# This saves one pass, and the two chains don't wait for each other. If the mean is
# large, the deviations are much smaller, so their sums are rounded more finely. But a
# chain is still as long as a channel. And an element is not always near the mean:
# images have borders and masks. If the first element is an outlier, the formula suffers
# from cancellation again.
#
# Rung 3: blocks
# --------------
#
# So this rung computes the mean first again, but of a block that is small enough to
# stay in the L1 cache. The second pass over the block finds it in L1, so the statistics
# still read memory once. Chan's formula merges the results of the blocks in float64
# :cite:`chan1983algorithms`.
#
# .. literalinclude:: ../../tutorials/kernels/cpu/ladder.h
#    :language: cpp
#    :start-after: // ---- from rung 3 on ----
#    :end-before: // ---- for rungs
#
# .. literalinclude:: ../../tutorials/kernels/cpu/ladder.cpp
#    :language: cpp
#    :start-after: // ---- from rung 3 on ----
#    :end-before: }  // namespace sbnref
#
# .. literalinclude:: ../../tutorials/kernels/cpu/3_blocks.cpp
#    :language: cpp
#    :start-after: namespace sbnref::cpu::ladder {
#    :end-before: }  // namespace sbnref

climb("3 blocks")

# %%
# This rung gains accuracy, not speed. There is one more chain to wait for, and a second
# pass over a block in L1 saves only memory traffic, which is not the limit yet. The
# gain in accuracy has four reasons: a sum has at most 4096 terms, the deviations are
# taken from the block's own mean, an outlier spoils only its own block, and the mean is
# kept in float64.
#
# Rung 4: vectors
# ---------------
#
# A register holds several floats, and one instruction adds or multiplies all of them.
# The type ``Lanes`` of ``csrc/cpu/lanes.h`` holds sixteen floats, a cache line, in as
# many registers as the CPU needs. Each lane has its own sum, and there are two sets of
# lanes: 32 chains for every sum.
#
# .. literalinclude:: ../../tutorials/kernels/cpu/4_vectors.cpp
#    :language: cpp
#    :start-after: namespace sbnref::cpu::ladder {
#    :end-before: }  // namespace sbnref

climb("4 vectors")

# %%
# The chains are no longer the limit. The source now fixes the order of additions, for
# registers of any width, so all CPUs compute equal bits. The second pass over a block
# costs little now, because L1 is fast and no addition waits for it.
#
# Rung 5: threads
# ---------------
#
# Every core has its own registers and its own L1. It would be easy to let each thread
# sum up its share of the tensor. But then the number of threads would decide the
# shares, the order of additions and so the last bits of the statistics, and two
# machines with different numbers of threads would disagree. Here each block has its own
# result instead.
#
# .. literalinclude:: ../../tutorials/kernels/cpu/5_threads.cpp
#    :language: cpp
#    :start-after: namespace sbnref::cpu::ladder {
#    :end-before: }  // namespace sbnref

climb("5 threads", THREADS)


def bits(name, threads):
    """Return the output and the statistics of a rung."""
    statistics = torch.empty(2, x.shape[1], dtype=torch.float64)
    return cpu_ladder.run(name, x, threads=threads, statistics=statistics), statistics


one = bits("4 vectors", 1)
for threads in (1, 2, 3, 7):
    same = all(map(torch.equal, bits("5 threads", threads), one))
    print(f"{threads} threads, equal to rung 4 in every bit: {same}")

# %%
# More threads than cores change nothing either. All cores share the connection to
# memory. With enough cores it is saturated, and then more cores don't help.
#
# Rung 6: streaming
# -----------------
#
# The last gain is to move fewer bytes. A CPU writes whole cache lines to memory. A
# store first fetches its cache line, even if the program is going to overwrite all of
# it. So y moves twice, and three transfers become four. A *non-temporal* store bypasses
# the caches; if it fills a line, the CPU fetches nothing. A row rarely is a whole
# number of lines. So each thread computes a chunk of y, with all its rows, in L1 and
# streams it from there.
#
# .. literalinclude:: ../../tutorials/kernels/cpu/6_streaming.cpp
#    :language: cpp
#    :start-after: namespace sbnref::cpu::ladder {
#    :end-before: }  // namespace sbnref

climb("6 streaming", THREADS)

# %%
# This is not always faster. If memory is the limit, saving a fetch saves time. But one
# core alone may not reach the bandwidth of memory. And a tensor that would fit into the
# cache is written to memory, so its next reader has to fetch it from there. The result
# does not depend on any of this:

same = all(map(torch.equal, bits("6 streaming", THREADS), one))
print(f"equal to rung 4 in every bit: {same}")

# %%
# The whole ladder
# ----------------
#
# This table has all rungs, timed in turns, in milliseconds and in copies by as many
# threads. The last two rows are PyTorch's own function and the layer with the package's
# kernels.

table = {}
for threads in dict.fromkeys((1, THREADS)):
    for name, times in cpu_ladder.times(x, threads, seconds=4).items():
        table.setdefault(name, {})[threads] = statistics.median(times)
print(
    f"{'threads':14}"
    + "".join(f"{threads:>10}{'copies':>8}" for threads in table["copy"])
)
for name, row in table.items():
    cells = [
        f"{1e3 * row[t]:>7.1f} ms{row[t] / copy:>8.1f}" if t in row else f"{'':18}"
        for t, copy in table["copy"].items()
    ]
    print(f"{name:14}" + "".join(cells))

# %% The package's kernels do more than the last rung. They handle four dtypes, strides,
# rows of any length, and the backward pass. They stream an output only if it and its
# input exceed the last-level cache, and their second pass starts on the data that the
# first pass left in the cache. ``csrc/cpu/reduce.h`` and ``csrc/cpu/apply.h`` are the
# full versions of rungs 3 to 6. A call of the layer also checks its input and enters
# autograd, which takes a fixed time for any size.
#
# The roofline
# ------------
#
# Is the ladder complete? Divide the bytes that have to move, twice x and once y, by the
# time. The *roof* is the bandwidth that a copy of this tensor reaches: a program that
# waits for memory cannot get far above it. The roof depends on the place of the tensor:
# L2 is faster than the last-level cache, which is faster than memory. Below the roof,
# something other than memory is the limit. At the roof, only moving fewer bytes would
# help.

from math import prod

caches = cpu_ladder.caches()
sizes = [caches["L2"] // 3, caches["L2"] * 2, caches["last level"] // 4]
batches = [max(1, size // x[:1].nbytes) for size in (*sizes, 3 * caches["last level"])]
print("The caches:", {name: f"{size >> 10} KiB" for name, size in caches.items()})

for threads in dict.fromkeys((1, THREADS)):
    speeds = {}
    for n in batches:
        part = torch.randn(n, *x.shape[1:]) + 1
        for name, times in cpu_ladder.times(part, threads, seconds=1).items():
            speed = cpu_ladder.moved(name, part) / statistics.median(times)
            speeds.setdefault(name, []).append(speed)
    print(f"\nGB/s with {threads} thread{'s' if threads > 1 else ''}")
    mebibytes = (4 * n * prod(x.shape[1:]) / 2**20 for n in batches)
    print(f"{'MiB of x':14}" + "".join(f"{size:>8.1f}" for size in mebibytes))
    for name, row in speeds.items():
        print(f"{name:14}" + "".join(f"{speed / 1e9:>8.1f}" for speed in row))

# %%
# The committed result files have these speeds from a machine with no other load
# (``benchmarks/cpu_ladder.py`` writes such a file). A flat line far below the roof does
# not depend on the place of the tensor: the program waits for its own arithmetic. A
# line that follows the roof down from cache to cache waits for memory.

if not cpu_ladder.draw_committed():
    print("The committed result files have no times of this ladder yet.")

# %%
# Tensors smaller than L2 show the other end. There the fixed costs count: the call
# itself, waking up the threads, and in the last row the layer around the kernels.
#
# Exercises
# ---------
#
# To change a rung, copy ``tutorials/kernels/cpu/`` and pass the copy to
# ``cpu_ladder.run`` as ``kernels``.
#
# 1. Let the compiler make vectors: ``flags=("-ftree-vectorize",)``. Which rungs become
#    faster, and why can no bit change? Then allow the compiler to reorder additions:
#    ``-fassociative-math -fno-signed-zeros -fno-trapping-math``. How do the bits of
#    rungs 1 and 5 change? Does rung 5 still give the same bits on every machine?
# 2. Put the first element of a channel k standard deviations from its mean, and predict
#    the relative error of rung 2's variance as a function of k. Then measure it for
#    rungs 2 and 3.
# 3. A process alone needs no all-reduce: it can take one channel after another through
#    both stages. How many bytes have to move then, and for which shapes? Write this
#    from rung 4. The bits should not change.
# 4. Normalize equally many elements in rows of 1, 7, 49 and 784. Which rungs suffer
#    from short rows, and why? How do the package's kernels process rows of one element
#    (``csrc/cpu/reduce.h``)?
