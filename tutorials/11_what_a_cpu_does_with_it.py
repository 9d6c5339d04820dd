r"""
11. What a CPU does with it
===========================

**Question.** Normalizing takes a handful of operations per number. What has to be done
to loops in C++ until a CPU is as fast as its memory allows, and how do you know when
you are there?

.. math::
    \mu = \frac 1m \sum_i x_i, \qquad v = \frac 1m \sum_i (x_i - \mu)^2, \qquad
    y_i = \frac{x_i - \mu}{\sqrt{v + \varepsilon}}.

Six rungs lead there, each with one idea. They are in ``tutorials/kernels/cpu/`` and
compute the forward pass in float32, without :math:`\gamma`, :math:`\beta` and running
statistics, on contiguous tensors (N, C, \*). Tutorial 5 climbs such a ladder for a GPU
by counting; here everything is timed, on the machine that this notebook runs on. It runs
from a checkout, and compiles the rungs the first time.
"""

# %%
# A yardstick
# -----------
#
# Nothing can be normalized before all of its channel was seen, and between the two
# stages of a synchronized layer stands the all-reduce, for all channels at once. So x is
# read twice and y written once. A copy reads once and writes once, and computes nothing.
# That makes it a yardstick: where memory is the limit, normalizing should take about one
# and a half copies; where it takes many, something else is the limit.
#
# The copy is timed in turn with whatever it is compared to, so that what disturbs one
# disturbs both, and with as many threads. Times are medians. Both allocate their output,
# from memory that is kept for them: mapping fresh pages can take as long as filling them.

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
    """What every rung has to compute, in the precision of x."""
    return sbnref.functional.sync_batch_norm(
        x, None, None, training=True, impl="reference"
    )


def error(name, x):
    """The largest on any output."""
    y = cpu_ladder.run(name, x, threads=THREADS)
    return (y.double() - reference(x.double())).abs().max().item()


def climb(name, threads=1):
    """Check a rung, time it beside the copy, and see how many digits it keeps."""
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
# What the rungs share: the tensor, and the line that normalizes a channel. The line
# takes a mean in float64 and keeps its digits, although everything on elements is
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
# The rungs are compiled with the flags of the package's own kernels, ``-O3`` among them,
# and with ``-fno-tree-vectorize``: there are vectors where the source has them, and
# nowhere else.
#
# Rung 1: naive
# -------------
#
# The formula, word by word.
#
# .. literalinclude:: ../../tutorials/kernels/cpu/1_naive.cpp
#    :language: cpp
#    :start-after: namespace sbnref::cpu::ladder {
#    :end-before: }  // namespace sbnref

climb("1 naive")

# %%
# What is the limit? Not memory, for the copy has the same. Nor arithmetic as such: a core
# can start several additions in every cycle. But the result of an addition is there only
# some cycles later, and here each addition needs that of the one before. It is this
# chain that takes the time. The compiler may not break it up: in floating point another
# order of additions is another result.
#
# The chain costs digits, too. Half way through a channel the sum is a large number, and
# whatever is added to it is rounded to its last place.
#
# Rung 2: one pass
# ----------------
#
# Both sums at once. About zero this would be the formula that cancels
# (:doc:`/learn/07_numerics_that_break`). About a pivot near the mean it does not, and
# any element of the channel is likely to be near.
#
# .. literalinclude:: ../../tutorials/kernels/cpu/2_one_pass.cpp
#    :language: cpp
#    :start-after: namespace sbnref::cpu::ladder {
#    :end-before: }  // namespace sbnref

climb("2 one pass")

# %%
# A pass less, and the two chains do not wait for each other. Where the mean is large, the
# deviations are small beside it, and their sums are rounded more finely. But a chain is
# still as long as a channel. And likely is not certain: images have borders and masks,
# and where the first element is an outlier everything cancels.
#
# Rung 3: blocks
# --------------
#
# So the mean comes first again, but of a block that is small enough to stay in the L1
# cache. The second pass over it finds it there, and memory is still read once for the
# statistics. The blocks' results are merged by Chan's formula, in float64
# :cite:`chan1983algorithms`.
#
# .. literalinclude:: ../../tutorials/kernels/cpu/ladder.h
#    :language: cpp
#    :start-after: // ---- from rung 3 on ----
#    :end-before: // ---- what rungs
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
# Do not look for speed here. There is one more chain to wait for, and the second look at
# a block is cheap only for memory, which is not the limit yet. What this rung buys are
# digits: a sum has no more than 4096 terms, the deviations are from the block's own mean,
# and an outlier spoils no other block. The mean survives as a float64.
#
# Rung 4: vectors
# ---------------
#
# A register holds several floats, and one instruction adds or multiplies them all. The
# type ``Lanes`` of ``csrc/cpu/lanes.h`` is sixteen of them, a cache line, in as many
# registers as the CPU needs for that. Each lane has its own sum, and there are two sets:
# 32 chains for every sum.
#
# .. literalinclude:: ../../tutorials/kernels/cpu/4_vectors.cpp
#    :language: cpp
#    :start-after: namespace sbnref::cpu::ladder {
#    :end-before: }  // namespace sbnref

climb("4 vectors")

# %%
# The chains are no longer the limit, and the order of additions is now one that we chose.
# It is the same whatever the width of the registers, so all CPUs get the same bits. Now
# the second look at a block costs little, for L1 is fast and nothing waits for it.
#
# Rung 5: threads
# ---------------
#
# Every core has its own registers and its own L1. It would be easy to let each thread sum
# up its share; then the shares, hence the order of additions, hence the last bits of the
# statistics would depend on how many threads there are. Two machines that should agree
# would not. A result belongs to its block instead.
#
# .. literalinclude:: ../../tutorials/kernels/cpu/5_threads.cpp
#    :language: cpp
#    :start-after: namespace sbnref::cpu::ladder {
#    :end-before: }  // namespace sbnref

climb("5 threads", THREADS)


def bits(name, threads):
    """Everything that a rung computes."""
    statistics = torch.empty(2, x.shape[1], dtype=torch.float64)
    return cpu_ladder.run(name, x, threads=threads, statistics=statistics), statistics


one = bits("4 vectors", 1)
for threads in (1, 2, 3, 7):
    same = all(map(torch.equal, bits("5 threads", threads), one))
    print(f"{threads} threads, the bits of rung 4: {same}")

# %%
# More threads than cores change nothing either. All cores share the way
# to memory. With enough of them it is full, and then no number of cores helps.
#
# Rung 6: streaming
# -----------------
#
# What is left is to move less. A CPU writes to memory by cache lines: a store first
# fetches the line that it changes a part of, even if all of it is going to be
# overwritten. So y is moved twice, and three becomes four. A *non-temporal* store goes
# around the caches; if it fills a line, nothing is fetched. Rows are rarely whole lines,
# so a chunk of y is made in L1, whatever the rows in it, and streamed from there.
#
# .. literalinclude:: ../../tutorials/kernels/cpu/6_streaming.cpp
#    :language: cpp
#    :start-after: namespace sbnref::cpu::ladder {
#    :end-before: }  // namespace sbnref

climb("6 streaming", THREADS)

# %%
# Whether this is faster depends. Where memory is the limit, a fetch saved is time saved.
# But one core alone may wait for other things than memory's bandwidth, and a tensor that
# would have found room in the cache is now written to memory, for whoever needs it next
# to fetch it from there. What never depends on it is the result:

same = all(map(torch.equal, bits("6 streaming", THREADS), one))
print(f"the bits of rung 4: {same}")

# %%
# The whole ladder
# ----------------
#
# All of it interleaved, in milliseconds and in copies by as many threads. Beside it
# PyTorch's own function and, in the last row, the layer with the package's kernels.

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

# %%
# The package does more than the last rung. It knows four types of elements, strides,
# rows of any length, and the backward pass; it streams only what is larger than the last
# cache; its second pass starts on what the first one left there. ``csrc/cpu/reduce.h``
# and ``csrc/cpu/apply.h`` are where rungs 3 to 6 lead. A call of the layer also checks
# its input and enters autograd, which takes a fixed time, whatever the size.
#
# A roofline
# ----------
#
# Is the ladder at its end? Divide the bytes that have to move, twice x and once y, by
# the time. The *roof* is the bandwidth that a copy of the same tensor reaches: no program
# that waits for memory gets far above it. The roof depends on where the tensor lies. One
# that fits into L2 is read faster than one in the last cache, and that faster than
# memory. Below the roof, something else than memory is the limit; at the roof, only
# moving less would help.

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
# The same from a machine that had nothing else to do, from the result files that are
# committed (``benchmarks/cpu_ladder.py`` writes one). A line that stays flat and far
# below the roof does not care where the tensor lies: it waits for its own arithmetic.
# One that follows the roof down from cache to cache waits for memory.

import matplotlib.pyplot as plt

from benchmarks import load
from benchmarks.figures import cpu_ladder as roofline

committed = 0
for file in sorted(cpu_ladder.RESULTS.glob("*.json")):
    results = load(file)
    rows = [row for row in results.rows if row["suite"] == "cpu_ladder"]
    if rows:
        roofline(plt, rows, results)
        committed += 1
plt.show()
if not committed:
    print("No result file with times of this ladder is committed yet.")

# %%
# Tensors that are smaller than L2 show the other end: there the call itself counts, the
# threads that have to be woken, and in the last row the layer around the kernels.
#
# Exercises
# ---------
#
# To change a rung, copy ``tutorials/kernels/cpu/``, and pass the copy to
# ``cpu_ladder.run`` as ``kernels``.
#
# 1. Let the compiler make vectors: ``flags=("-ftree-vectorize",)``. Which rungs become
#    faster, and why can no bit change? Then allow it to reorder additions:
#    ``-fassociative-math -fno-signed-zeros -fno-trapping-math``. What happens to the
#    bits of rungs 1 and 5, and what to the promise of rung 5?
# 2. Put the first element of a channel k standard deviations from its mean, and predict
#    the relative error of rung 2's variance as a function of k. Then measure it, and that
#    of rung 3.
# 3. A process alone needs no all-reduce: it can take one channel after another through
#    both stages. What has to move then, for which shapes? Write it from rung 4. The bits
#    should not change.
# 4. Normalize as many elements in rows of 1, 7, 49 and 784. Which rungs suffer from short
#    rows, and from what? How do the package's kernels go through rows of one element
#    (``csrc/cpu/reduce.h``)?
