r"""
5. From formula to kernel
=========================

**Question.** Normalizing a channel is three lines of mathematics. What has to be done
to them until a GPU computes them as fast as its memory allows, and how much of that can
be known without a GPU?

.. math::
    \mu = \frac 1m \sum_i x_i, \qquad v = \frac 1m \sum_i (x_i - \mu)^2, \qquad
    y_i = \frac{x_i - \mu}{\sqrt{v + \varepsilon}}.

Nine kernels lead there, each with one idea. They are in ``tutorials/kernels/`` and
compute the forward pass in float32, the last one in float16, without :math:`\gamma`,
:math:`\beta` and running statistics. What else a layer needs is in ``csrc/``, where the last rungs' shape is that
of the first two stages. This tutorial runs from a checkout, and compiles the kernels for
the CPU the first time.
"""

# %%
# The plain Python
# ----------------
#
# The formula takes two passes over the elements, and normalizing is a third one:


def two_pass(values):
    """Count, mean and sum of squared deviations, as the formula has them."""
    mean = sum(values) / len(values)
    return len(values), mean, sum((x - mean) ** 2 for x in values)


# %%
# Welford's update takes in one element at a time, so one pass is enough. And by Chan's
# formula the results of two parts give that of the whole, so the parts can be worked on
# at the same time :cite:`chan1983algorithms`:


def welford(values):
    """The same in one pass."""
    count, mean, m2 = 0, 0.0, 0.0
    for x in values:
        count += 1
        delta = x - mean
        mean += delta / count
        m2 += delta * (x - mean)
    return count, mean, m2


def merge(a, b):
    """The result for two sets together, from that of each."""
    count, delta = a[0] + b[0], b[1] - a[1]
    fraction = b[0] / count
    mean, m2 = a[1] + delta * fraction, a[2] + b[2] + delta**2 * a[0] * fraction
    return count, mean, m2


# %%
# The check, on a tensor that we keep: (N, C, H, W), mean 1.

import torch

torch.manual_seed(0)
x = torch.randn(16, 32, 28, 28) + 1
channel = x[:, 0].flatten().tolist()
half = len(channel) // 2
for result in (
    two_pass(channel),
    welford(channel),
    merge(welford(channel[:half]), welford(channel[half:])),
):
    count, mean, m2 = result
    print(f"mean {mean:.12f}, variance {m2 / count:.12f}")

# %%
# What to count
# -------------
#
# A GPU multiplies far faster than it reads, so the time of such a kernel is that of its
# memory traffic, if everything else is done right. The floor is to read the tensor
# twice (nothing can be normalized before all of it was seen) and to write it once.
#
# The kernels run here in a simulation of CUDA that counts: the launches and their
# blocks, the bytes that threads ask for, the 32-byte sectors that a warp's accesses
# touch, since memory moves whole sectors, and the access instructions. The same files
# compile for a GPU.

from kernels import ladder

import sbnref

MULTIPROCESSORS = 132  # of an H100 or H200; sbnref lab traffic plans for the same
far = x[:2] + 1000  # a mean of a thousand standard deviations
results = {}


def reference(x):
    """What every rung has to compute, in the precision of x."""
    return sbnref.functional.sync_batch_norm(
        x, None, None, training=True, impl="reference"
    )


def climb(name, x=x, far=far, label=None):
    """Check a rung, count what it does, and say so."""
    call = ladder.Call(name, x, blocks=MULTIPROCESSORS)
    counts = ladder.count(call)
    rtol, size = max(1e-5, torch.finfo(x.dtype).eps), x.nbytes
    torch.testing.assert_close(call.y, reference(x), rtol=rtol, atol=1e-5)

    on_far = ladder.Call(name, far, blocks=MULTIPROCESSORS)
    error = (on_far.run().double() - reference(far.double())).abs().max().item()
    results[label or name] = counts, call, error
    print(f"{counts.launches} launches, the first one of {counts.blocks} blocks")
    print(
        f"{counts.read / size:.2f} times x read, "
        f"{counts.written / size:.2f} times written"
    )
    print(f"{counts.moved / size:.2f} times x moved, in whole sectors")
    print(f"{counts.requests:,} access instructions of warps")
    print(f"largest error at a mean of 1000 standard deviations: {error:.0e}")


# %%
# What the rungs share fits on a page: the tensor, and two ways in which the threads of a
# block exchange numbers. All of it is ordinary CUDA. The simulation sees every access,
# because the compiler reports it (:doc:`/cuda_without_a_gpu`).
#
# .. literalinclude:: ../../csrc/laboratory/laboratory.cuh
#    :language: cuda
#    :start-at: constexpr int kThreads
#
# Rung 1: naive
# -------------
#
# The formula, word by word. One kernel for the mean, one for the variance, one to
# normalize; in each of them a block of threads for every channel.
#
# .. player:: 1-naive
#
#    Watch rung 1: every access of every warp, as the simulation saw it
#
# .. literalinclude:: ../../tutorials/kernels/1_naive.cu
#    :language: cuda

climb("1 naive")

# %%
# Three reads where two would do.
#
# Rung 2: Welford
# ---------------
#
# Every thread runs Welford's update over its own elements, and Chan's formula merges
# what the threads have found. The statistics take one pass.
#
# .. player:: 2-welford+1-naive
#
#    Watch rung 2 beside rung 1, on the same clock
#
# .. literalinclude:: ../../tutorials/kernels/2_welford.cu
#    :language: cuda

climb("2 Welford")

# %%
# The floor is reached, and none of the rungs below reads or writes less. What they gain
# lies elsewhere.
#
# Rung 3: split
# -------------
#
# A block runs on one multiprocessor. With a block for every channel there are fewer
# blocks than multiprocessors, and the others have nothing to do:

blocks = results["2 Welford"][0].blocks
print(f"{blocks} blocks keep {blocks} of {MULTIPROCESSORS} multiprocessors busy")

# %%
# So several blocks share a channel. An atomic addition would be the short way to combine
# what they found, but then the sum would depend on which of them comes first. Instead
# each leaves its result in memory, and a third kernel merges them in a fixed order: two
# runs agree to the bit.
#
# .. player:: 3-split+2-welford
#
#    Watch rung 3 beside rung 2
#
# .. literalinclude:: ../../tutorials/kernels/3_split.cu
#    :language: cuda

climb("3 split")

# %%
# The bytes are the same but for the partial results, and the blocks now go round.
#
# Rung 4: wide
# ------------
#
# A thread can load 16 bytes with one instruction. It then has four elements whose mean
# and deviations it takes in registers before it merges them with what it has, which
# saves three of four divisions as well.
#
# .. player:: 4-wide+3-split
#
#    Watch rung 4 beside rung 3
#
# .. literalinclude:: ../../tutorials/kernels/4_wide.cu
#    :language: cuda

climb("4 wide")

# %%
# The same bytes again, by a quarter of the instructions. Runs that are no multiple of
# four elements long fall back to single ones here; in ``csrc/walk.cuh`` they do not.
#
# Rung 5: payload
# ---------------
#
# A synchronized layer does not need this rank's mean and variance but what it tells the
# others (:doc:`/derivations/payload`). The last block of a channel to finish, which is
# the one that takes the last ticket, merges the partial results and writes the payload
# in float64. So there is one launch for each stage, and between them nothing but the
# all-reduce. The second stage takes the mean from the float64 total in two parts
# (:doc:`/derivations/precision`).
#
# .. player:: 5-payload
#
#    Watch rung 5: the last block takes its ticket, and merges
#
# .. literalinclude:: ../../tutorials/kernels/5_payload.cu
#    :language: cuda

climb("5 payload")

# %%
# One launch less, and more of the digits: float32 cannot hold a mean of 1000 to better
# than half a unit in its last place, and all the rungs above had to. The payload is that
# of the reference's first stage:

from sbnref.impls.reference import forward_stats

torch.testing.assert_close(results["5 payload"][1].payload, forward_stats(x, 1))

# %%
# Rung 6: backwards
# -----------------
#
# When the first pass ends, the cache holds the end of the tensor. A second pass that
# starts at the beginning throws it away before it gets there. One that starts at the end
# does not.
#
# .. player:: 6-backwards+5-payload
#
#    Watch rung 6 beside rung 5: where the second pass begins
#
# .. literalinclude:: ../../tutorials/kernels/6_backwards.cu
#    :language: cuda

climb("6 backwards")

# %%
# No count has changed: the threads ask for the same bytes by the same instructions. What
# changes is how many of these bytes come from memory, and that takes a model. Ours is a
# cache that keeps the sectors used last, whichever they are, and blocks that all run at
# once and in step. No GPU is quite like that. What was accessed is recorded.
#
# .. literalinclude:: ../../tutorials/kernels/ladder.py
#    :pyobject: fetched

for capacity in (0.5, 1, 1.5, 2.5):
    shares = [
        ladder.fetched(call, counts, int(capacity * x.nbytes))
        for counts, call, _ in (results["5 payload"], results["6 backwards"])
    ]
    print(
        f"a cache of {capacity} x: {shares[0]:.0%} fetched forwards, "
        f"{shares[1]:.0%} backwards"
    )

# %%
# Rung 7: channels-last
# ---------------------
#
# In channels-last memory a channel's elements lie far apart. The kernels of rung 3 can
# read them through their strides, and are right:

last = x.contiguous(memory_format=torch.channels_last)
far_last = far.contiguous(memory_format=torch.channels_last)
climb("3 split", last, far_last, "3 on channels-last")

# %%
# But for every element they move the whole sector it lies in. Side by side in memory are
# now the channels, so that is how the threads of a warp have to stand: a block works on
# 32 channels, each of its warps reads a row of them, and a thread stays with its channel.
# It loads four rows before it uses the first; the next rung says why.
#
# .. player:: 7-channels-last+3-on-channels-last
#
#    Watch rung 7 beside rung 3 on channels-last memory: the sectors that they move
#
# .. literalinclude:: ../../tutorials/kernels/7_channels_last.cu
#    :language: cuda

climb("7 channels-last", last, far_last)

# %%
# The traffic is back near the floor. What is above it are the partial results: every
# block now leaves one for 32 channels, which shows on a tensor as small as this one. The
# instructions are as many as before rung 4; in ``csrc/`` a thread reads 16 bytes, and has
# several channels, in this layout too.
#
# Rung 8: in flight
# -----------------
#
# Memory answers late, and delivers at its full rate only while enough has been asked for:
# by Little's law, bandwidth times latency. The bandwidth of an H100 is in its data sheet.
# The latency is an assumption, and nothing was timed here.

bandwidth, latency = 3.35e12, 600e-9
needed = bandwidth * latency / MULTIPROCESSORS
print(f"{needed / 1e3:.0f} KB have to be in flight on each multiprocessor")

# %%
# What a kernel has in flight is in its machine code: the bytes that a thread asks for
# before it uses the first, and the registers, which decide how many threads a
# multiprocessor holds. nvcc 13.0 makes this of the statistics, for an H100:
#
# ==================  =========  =======  ==============  ===========
# rung                registers  threads  bytes of each   all threads
# ==================  =========  =======  ==============  ===========
# 3                          32     2048               4         8 KB
# 6                          44     1280              16        20 KB
# 7, row by row              56     1024               4         4 KB
# 7                          52     1024              16        16 KB
# 8 and 9                    44     1280              64        82 KB
# ==================  =========  =======  ==============  ===========
#
# The last column is what is in flight if every thread waits. A thread that computes has
# nothing in flight, and rung 6 has little to spare. So a thread loads 16 bytes four times
# before it uses the first.
#
# .. player:: 8-in-flight+6-backwards
#
#    Watch rung 8 beside rung 6
#
# .. literalinclude:: ../../tutorials/kernels/8_in_flight.cu
#    :language: cuda

climb("8 in flight")

# %%
# No count has changed: the simulation knows no time.
#
# Rung 9: half precision
# ----------------------
#
# The traffic halves with the size of an element. The eight elements of an access are
# converted in registers, and everything between is float32.
#
# .. player:: 9-half
#
#    Watch rung 9: eight elements with each access
#
# .. literalinclude:: ../../tutorials/kernels/9_half.cu
#    :language: cuda

climb("9 half", x.half(), far.half())

# %%
# The error is that of rounding y to the 11 bits of float16. The kernels in ``csrc/`` are
# of this form, for all dtypes and layouts. ``csrc/walk.cuh`` streams with little more than
# half of the instructions, and states what each of its tricks buys.
#
# The whole ladder
# ----------------
#
# Everything that was counted, in one table. Bytes are in units of x, and the cache of the
# model is as large as x.

table = {}
for name, (counts, call, error) in results.items():
    size = call.x.nbytes
    table[name] = {
        "launches": counts.launches,
        "blocks": counts.blocks,
        "read": counts.read / size,
        "written": counts.written / size,
        "moved": counts.moved / size,
        "instructions": counts.requests,
        "fetched": ladder.fetched(call, counts, size),
        "error": error,
    }
formats = ("d", "d", ".2f", ".2f", ".2f", ",d", ".0%", ".0e")
headings = list(next(iter(table.values())))
print(f"{'':18}" + "".join(f"{heading:>{len(heading) + 2}}" for heading in headings))
for name, row in table.items():
    cells = zip(headings, formats, strict=True)
    print(f"{name:18}" + "".join(f"{row[h]:>{len(h) + 2}{f}}" for h, f in cells))
print(f"{'floor':18}{'':18}{2:>6.2f}{1:>9.2f}{3:>7.2f}")

# %%
# The same as a picture.

import matplotlib.pyplot as plt

titles = {
    "launches": "launches",
    "blocks": "blocks of the first one",
    "read": "bytes read, over x",
    "written": "bytes written, over x",
    "moved": "bytes moved, over x",
    "instructions": "access instructions",
    "fetched": "of x fetched again (model)",
    "error": "error at 1000 deviations",
}
lines = {"blocks": MULTIPROCESSORS, "read": 2, "written": 1, "moved": 3}
figure, axes = plt.subplots(4, 2, figsize=(7.5, 9), sharey=True)
names = list(table)[::-1]
for ax, (column, title) in zip(axes.flat, titles.items(), strict=True):
    values = [table[name][column] for name in names]
    ax.plot(values, names, "o")
    if column in lines:
        ax.axvline(lines[column], color="gray", linewidth=0.8)
    if column == "error":
        ax.set(xscale="log", xlim=(1e-6, 1e-2))
    else:
        ax.set_xlim(0, 1.1 * max(values))
        ax.locator_params(axis="x", nbins=4)
    ax.set_title(title, fontsize=9)
    ax.grid(axis="y", linewidth=0.4)
    ax.tick_params(labelsize=8)
figure.supxlabel("gray: the floor; for blocks, the multiprocessors", fontsize=8)
plt.show()

# %%
# On a GPU
# --------
#
# Counting says what a kernel asks for, not how long it takes. ``make gpu-check`` times
# the rungs on a machine with a GPU; this is what the committed result files have.

import json

files = sorted((ladder.KERNELS.parents[1] / "benchmarks/results").glob("*.json"))
timed = [
    (file.stem, row) for file in files for row in json.loads(file.read_text())["rows"]
]
timed = [(stem, row) for stem, row in timed if row["suite"] == "ladder"]
for stem, row in timed:
    print(
        f"{stem}, {tuple(row['shape'])}, {row['layer']}: {1e6 * row['median']:.0f} µs, "
        f"{row['over_floor']:.2f} times the floor"
    )
if not timed:
    print("No result file with times of the ladder is committed yet.")

# %%
# Exercises
# ---------
#
# To change a kernel, copy ``tutorials/kernels/``, and pass the copy to ``ladder.Call``
# as ``kernels``.
#
# 1. Predict the share of x that the second pass fetches, forwards and backwards, as a
#    function of the cache's size. Do not forget that what is written is kept as well.
#    Then sweep the size.
# 2. Take the barrier out of ``merge_over_block``. What does the simulation say, and does
#    it depend on the order of turns (``ladder.set_order``)? What would a GPU say?
# 3. Two ranks, one of them empty: run the first door of rung 5 on each, add the payloads,
#    run the second. Which weights make it mode ``'exact'``, and what is missing for
#    ``'default'``?
# 4. Rung 7 is less exact than its payload allows, because a thread's float32 mean is
#    rounded at every update. Let each thread take deviations from its first element.
