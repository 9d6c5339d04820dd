r"""
5. From formula to kernel
=========================

Follow a CUDA kernel from the bare formula to memory speed in nine steps, and count the
gain of each step without a GPU. **Time:** about 60 minutes, and 90 for the exercises.
**You need:** C++, the idea of CUDA's blocks and threads, and a C++ compiler.

**Question.** Normalizing a channel is three lines of mathematics. Which steps make a
GPU compute them as fast as its memory allows, and how many of these steps can you
check without a GPU?

.. math::
    \mu = \frac 1m \sum_i x_i, \qquad v = \frac 1m \sum_i (x_i - \mu)^2, \qquad
    y_i = \frac{x_i - \mu}{\sqrt{v + \varepsilon}}.

The steps are a ladder of nine kernels; each rung adds one idea. They are in
``tutorials/kernels/`` and compute the forward pass without :math:`\gamma`,
:math:`\beta` and running statistics, in float32 except for the last rung, which uses
float16. The package's own kernels in ``csrc/`` are built like the last rungs and do the
rest of a layer's work. This tutorial runs from a checkout. It compiles the kernels for
the CPU the first time.
"""

# %%
# Plain Python
# ------------
#
# The formula takes two passes over the elements, and normalizing takes a third pass:


def two_pass(values):
    """Return count, mean and sum of squared deviations by the formula."""
    mean = sum(values) / len(values)
    return len(values), mean, sum((x - mean) ** 2 for x in values)


# %%
# Welford's update processes one element at a time and needs only one pass. Chan's
# formula combines the results of two parts into the result of the whole, so the parts
# can be processed at the same time :cite:`chan1983algorithms`:


def welford(values):
    """Return count, mean and sum of squared deviations in one pass."""
    count, mean, m2 = 0, 0.0, 0.0
    for x in values:
        count += 1
        delta = x - mean
        mean += delta / count
        m2 += delta * (x - mean)
    return count, mean, m2


def merge(a, b):
    """Combine the results of two sets by Chan's formula."""
    count, delta = a[0] + b[0], b[1] - a[1]
    fraction = b[0] / count
    mean, m2 = a[1] + delta * fraction, a[2] + b[2] + delta**2 * a[0] * fraction
    return count, mean, m2


# %%
# All three agree, here on the first channel of a tensor (N, C, H, W) with mean 1:

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
# Counting instead of timing
# --------------------------
#
# A GPU multiplies far faster than it reads. So the memory traffic decides how long such
# a kernel takes, if everything else is done right. The least traffic is to read the
# tensor twice (before a kernel can normalize one element, it must have seen all of
# them) and to write it once. We call this the *floor*.
#
# The kernels run here in a simulation of CUDA that counts:
#
# - the launches and their blocks,
# - the bytes that threads read and write,
# - the 32-byte sectors that the accesses of a warp touch, because memory moves whole
#   sectors,
# - the access instructions.
#
# The files are ordinary CUDA and compile for a GPU, too.

from kernels import ladder

import sbnref

MULTIPROCESSORS = 132  # of an H100 or H200; sbnref lab traffic plans for the same
far = x[:2] + 1000  # a mean of a thousand standard deviations
results = {}


def reference(x):
    """Return the result that every rung must compute, in the precision of x."""
    return sbnref.functional.sync_batch_norm(
        x, None, None, training=True, impl="reference"
    )


def climb(name, x=x, far=far, label=None):
    """Check a rung, count its work, and print the counts."""
    call = ladder.Call(name, x, blocks=MULTIPROCESSORS)
    counts = ladder.count(call)
    rtol, size = max(1e-5, torch.finfo(x.dtype).eps), x.nbytes
    torch.testing.assert_close(call.y, reference(x), rtol=rtol, atol=1e-5)

    on_far = ladder.Call(name, far, blocks=MULTIPROCESSORS)
    error = (on_far.run().double() - reference(far.double())).abs().max().item()
    results[label or name] = counts, call, error
    print(f"{counts.launches} launches; the first has {counts.blocks} blocks")
    print(f"read {counts.read / size:.2f} times x, written {counts.written / size:.2f}")
    print(f"moved in whole sectors {counts.moved / size:.2f} times x")
    print(f"{counts.requests:,} access instructions of warps")
    print(f"largest error at a mean of 1000 standard deviations: {error:.0e}")


# %%
# All rungs share one page of code: the tensor, and two ways for the threads of a block
# to exchange numbers. All of it is ordinary CUDA. The simulation sees every access
# because the compiler reports it (:doc:`/cuda_without_a_gpu`).
#
# .. literalinclude:: ../../csrc/laboratory/laboratory.cuh
#    :language: cuda
#    :start-at: constexpr int kThreads
#
# Rung 1: naive
# -------------
#
# This rung is the formula, word by word. One kernel computes the mean, one computes the
# variance, and one normalizes. In each kernel, every channel has a block of threads.
#
# .. player:: 1-naive
#
#    Watch rung 1: every access of every warp, as the simulation saw it
#
# .. literalinclude:: ../../tutorials/kernels/1_naive.cu
#    :language: cuda

climb("1 naive")

# %%
# The kernels read x three times, but two times are enough.
#
# Rung 2: Welford
# ---------------
#
# Every thread runs Welford's update over its own elements. Chan's formula merges the
# results of the threads. The statistics take one pass.
#
# .. player:: 2-welford+1-naive
#
#    Watch rung 2 beside rung 1, on the same clock
#
# .. literalinclude:: ../../tutorials/kernels/2_welford.cu
#    :language: cuda

climb("2 Welford")

# %%
# This rung reaches the floor. The next rungs read and write no less, and gain
# elsewhere.
#
# Rung 3: split
# -------------
#
# A block runs on one multiprocessor. With one block for every channel there are fewer
# blocks than multiprocessors, so some multiprocessors have no work:

blocks = results["2 Welford"][0].blocks
print(f"{blocks} blocks keep {blocks} of {MULTIPROCESSORS} multiprocessors busy")

# %%
# So several blocks share a channel. An atomic addition would be a short way to combine
# their results, but then the sum would depend on the order in which the blocks finish.
# Instead each block stores its result in memory. A third kernel merges these partial
# results in a fixed order, so two runs agree bit for bit.
#
# .. player:: 3-split+2-welford
#
#    Watch rung 3 beside rung 2
#
# .. literalinclude:: ../../tutorials/kernels/3_split.cu
#    :language: cuda

climb("3 split")

# %%
# Apart from the partial results, the bytes don't change. Now every multiprocessor has
# work.
#
# Rung 4: wide
# ------------
#
# A thread can load 16 bytes, which are four elements, with one instruction. It computes
# the mean and the deviations of the four elements in registers and merges them into its
# own result. This also saves three of four divisions.
#
# .. player:: 4-wide+3-split
#
#    Watch rung 4 beside rung 3
#
# .. literalinclude:: ../../tutorials/kernels/4_wide.cu
#    :language: cuda

climb("4 wide")

# %%
# A quarter of the instructions move an unchanged number of bytes. If the spatial size
# is not a multiple of four, this kernel falls back to single elements; the kernels in
# ``csrc/walk.cuh`` don't have to.
#
# Rung 5: payload
# ---------------
#
# A synchronized layer does not need the mean and variance of this rank. It needs this
# rank's *payload*, the numbers for the all-reduce (:doc:`/derivations/payload`). Each
# block of a channel takes a *ticket* when it finishes: it increments the channel's
# counter atomically. The block with the last ticket merges the partial results and
# writes the payload in float64. So each stage takes one launch, with only the
# all-reduce in between. The second stage splits the mean of the float64 total into two
# parts (:doc:`/derivations/precision`).
#
# .. player:: 5-payload
#
#    Watch rung 5: the last block takes its ticket, and merges
#
# .. literalinclude:: ../../tutorials/kernels/5_payload.cu
#    :language: cuda

climb("5 payload")

# %%
# This saves one launch and keeps more precision. The rungs above store the mean in
# float32, which rounds a mean of 1000 by up to half a unit in the last place. The
# payload equals the payload of the reference's first stage:

from sbnref.impls.reference import forward_stats

torch.testing.assert_close(results["5 payload"][1].payload, forward_stats(x, 1))

# %%
# Rung 6: backwards
# -----------------
#
# When the first pass ends, the cache holds the end of the tensor. A second pass that
# starts at the beginning of the tensor evicts this end before it gets there. A second
# pass that starts at the end of the tensor finds it in the cache.
#
# .. player:: 6-backwards+5-payload
#
#    Watch rung 6 beside rung 5: where the second pass begins
#
# .. literalinclude:: ../../tutorials/kernels/6_backwards.cu
#    :language: cuda

climb("6 backwards")

# %%
# No count has changed: the threads read the same bytes with the same instructions. The
# gain is that fewer of these bytes come from memory. To see it we need a model of the
# cache. In our model, the cache keeps the sectors that were used last, and all blocks
# run at once and in step. No GPU is quite like that. The input of the model is the
# recorded list of accesses.
#
# .. literalinclude:: ../../tutorials/kernels/ladder.py
#    :pyobject: fetched

for capacity in (0.5, 1, 1.5, 2.5):
    forwards, backwards = (
        ladder.fetched(call, counts, int(capacity * x.nbytes))
        for counts, call, _ in (results["5 payload"], results["6 backwards"])
    )
    print(
        f"cache of {capacity} x: the second pass fetches {forwards:.0%} of x forwards, "
        f"{backwards:.0%} backwards"
    )

# %%
# Rung 7: channels-last
# ---------------------
#
# In channels-last memory the elements of a channel lie far apart. The kernels of rung 3
# can read them through their strides, and the result is right:

last = x.contiguous(memory_format=torch.channels_last)
far_last = far.contiguous(memory_format=torch.channels_last)
climb("3 split", last, far_last, "3 on channels-last")

# %%
# But for every element these kernels move the whole sector around it. In this layout
# neighbours in memory belong to neighbouring channels, so the threads of a warp should
# take neighbouring channels: a block works on 32 channels, each of its warps reads a
# row of them, and each thread stays with one channel. A thread loads four rows before
# it uses the first; rung 8 explains why.
#
# .. player:: 7-channels-last+3-on-channels-last
#
#    Watch rung 7 beside rung 3 on channels-last memory: the sectors that they move
#
# .. literalinclude:: ../../tutorials/kernels/7_channels_last.cu
#    :language: cuda

climb("7 channels-last", last, far_last)

# %%
# The traffic is back near the floor. The rest are the partial results: each block now
# stores partial results for 32 channels, which is visible on a tensor as small as this
# one. There are as many instructions as before rung 4. The kernels in ``csrc/`` read 16
# bytes at a time in this layout, too, and a thread has several channels.
#
# Rung 8: in flight
# -----------------
#
# Memory answers with a delay. It delivers at its full rate only if enough bytes are in
# flight: by Little's law, bandwidth times latency. The bandwidth of an H100 is in its
# data sheet. The latency is an assumption, and nothing was timed here.

bandwidth, latency = 3.35e12, 600e-9
needed = bandwidth * latency / MULTIPROCESSORS
print(f"each multiprocessor needs {needed / 1e3:.0f} KB in flight")

# %%
# The machine code of a kernel shows how many bytes it has in flight: the bytes that a
# thread loads before it uses the first, times the number of threads on a
# multiprocessor. The number of registers limits the number of threads. nvcc 13.0
# compiles the statistics for an H100 to:
#
# ==================  =========  =======  ==============  ===========
# rung                registers  threads  bytes / thread  all threads
# ==================  =========  =======  ==============  ===========
# 3                          32     2048               4         8 KB
# 6                          44     1280              16        20 KB
# 7, row by row              56     1024               4         4 KB
# 7                          52     1024              16        16 KB
# 8 and 9                    44     1280              64        82 KB
# ==================  =========  =======  ==============  ===========
#
# The last column assumes that every thread waits for memory. A thread that computes has
# nothing in flight, and rung 6 has little to spare. So in rung 8 a thread loads 16
# bytes four times before it uses the first.
#
# .. player:: 8-in-flight+6-backwards
#
#    Watch rung 8 beside rung 6
#
# .. literalinclude:: ../../tutorials/kernels/8_in_flight.cu
#    :language: cuda

climb("8 in flight")

# %%
# No count has changed, because the simulation has no notion of time.
#
# Rung 9: half precision
# ----------------------
#
# Elements of half the size halve the traffic. The kernel converts the eight elements of
# an access in registers and computes everything in between in float32.
#
# .. player:: 9-half
#
#    Watch rung 9: eight elements with each access
#
# .. literalinclude:: ../../tutorials/kernels/9_half.cu
#    :language: cuda

climb("9 half", x.half(), far.half())

# %%
# The error comes from rounding y to the 11 bits of float16. The kernels in ``csrc/``
# have this form, for all dtypes and layouts. ``csrc/walk.cuh`` uses little more than
# half of the instructions, and its comments state the gain of each trick.
#
# The whole ladder
# ----------------
#
# This table has all counts. Bytes are in units of x, and the cache of the model is as
# large as x.

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
# The figure shows the columns in which the rungs gain.

ladder.draw(table, MULTIPROCESSORS)

# %%
# Times on a GPU
# --------------
#
# Counts tell how many bytes a kernel moves, not how long it takes. ``make gpu-check``
# times the rungs on a machine with a GPU. These are the times in the committed result
# files:

import json

files = sorted((ladder.KERNELS.parents[1] / "benchmarks/results").glob("*.json"))
timed = [
    (file.stem, row) for file in files for row in json.loads(file.read_text())["rows"]
]
timed = [(stem, row) for stem, row in timed if row["suite"] == "ladder"]
for stem, row in timed:
    print(
        f"{stem}, {tuple(row['shape'])}, {row['layer']}: "
        f"{1e6 * row['median']:.0f} µs, {row['over_floor']:.2f} times the floor"
    )
if not timed:
    print("The committed result files have no times of this ladder yet.")

# %%
# Exercises
# ---------
#
# To change a kernel, copy ``tutorials/kernels/`` and pass the copy to ``ladder.Call``
# as ``kernels``.
#
# 1. Predict the share of x that the second pass fetches, forwards and backwards, as a
#    function of the cache size. Remember that the cache also keeps written sectors.
#    Then sweep the size.
# 2. Remove the barrier from ``merge_over_block``. Which error does the simulation
#    report, and does it depend on the order of the threads (``ladder.set_order``)?
#    Which error would a GPU report?
# 3. Take two ranks, one of them empty. Run the first function of rung 5 on each, add
#    the payloads, and run the second function. Which weights make this mode
#    ``'exact'``? Which part is missing for ``'default'``?
# 4. Rung 7 is less exact than its payload allows, because every update rounds a
#    thread's float32 mean. Let each thread take deviations from its first element.
