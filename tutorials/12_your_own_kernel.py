r"""
12. Your own kernel
===================

Write a CUDA kernel from an empty file without a GPU, and check that it is legal, right
and efficient. **Time:** about 45 minutes, and 90 for the exercises. **You need:** the
start of tutorial 5, C++, and a C++ compiler.

**Question.** You have no GPU. Can you still write CUDA kernels, know that they are
right, and see every access that they make?

Tutorial 5 shows a ladder of kernels. Here you write a kernel in four steps, in ordinary
CUDA. After each step, ``sbnref lab check`` tells whether the kernel is *legal*, *right*
and *efficient*, and ``sbnref lab trace`` plays every step of every warp. Both run the
kernel in the simulation of CUDA. The four steps are in ``tutorials/kernels/own/``. This
page runs from a checkout and compiles each step for the CPU.
"""

# %%
# The task
# --------
#
# ``sbnref lab template batch_norm > mine.cu`` gives you a file to start from. It has
# the function that launches your kernels; its arguments are arrays in the GPU's memory.

from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory

from kernels import ladder

from sbnref.lab.grading.kernels.check import check_kernels
from sbnref.lab.grading.kernels.report import PARTS
from sbnref.lab.task_call import record_task
from sbnref.lab.tasks import TASKS

task = TASKS["batch_norm"]
print(task.template())

# %%
# ``sbnref lab check mine.cu --task batch_norm`` grades the file. This page calls the
# grader from Python, on fewer inputs and with a fixed seed.

STEPS = ladder.KERNELS / "own"
folder = TemporaryDirectory()
mine = Path(folder.name) / "mine.cu"


def check(text, parts=PARTS):
    """Grade a file with this text, as ``sbnref lab check mine.cu`` does."""
    mine.write_text(text)
    return check_kernels(mine, task, parts, examples=30, seed=0)


def step(name, was=None, now=""):
    """Return the text of a step; replace ``was`` by ``now`` if given."""
    text = (STEPS / f"{name}.cu").read_text()
    assert was is None or text.count(was) == 1
    return text if was is None else text.replace(was, now)


def watch(name):
    """Record a step on a small tensor, as ``sbnref lab trace`` does; print counts."""
    counts = record_task(STEPS / f"{name}.cu", task, (6, 2, 100)).counts()
    for names in (
        ("read", "written", "sectors", "again"),
        ("accesses", "barriers", "conflicts", "steps"),
    ):
        print(", ".join(f"{name} {counts[name]:,}" for name in names))


check(task.template(), ["right"])

# %%
# The kernel writes nothing yet. The report shows the smallest input that fails.
#
# Step 1: the formula
# -------------------
#
# .. math::
#     \mu = \frac 1m \sum_i x_i, \qquad v = \frac 1m \sum_i (x_i - \mu)^2, \qquad
#     y_i = \frac{x_i - \mu}{\sqrt{v + \varepsilon}}.
#
# Every channel has a block of threads. Thread 0 takes elements 0, 256, 512, ..., thread
# 1 takes elements 1, 257, 513, ..., and ``sum_over_block`` adds up the sums of the
# threads. A second kernel normalizes.
#
# .. literalinclude:: ../../tutorials/kernels/own/1_formula.cu
#    :language: cuda
#
# ``sum_over_block`` comes from ``laboratory.cuh``, the header that the kernels of the
# tutorials share:
#
# .. literalinclude:: ../../csrc/laboratory/laboratory.cuh
#    :language: cuda
#    :start-at: // The sum over the threads
#    :end-before: // y = (x - center)
#
# It is easy to forget the barrier between the two sums. This is the report without it:

barrier = "    __syncthreads();  // before the next sum uses the same shared memory\n"
check(step("1_formula", barrier), ["legal"])

# %%
# ``sum_over_block`` uses shared memory. A warp that has finished the first sum begins
# the second sum and overwrites numbers that a slower warp still reads. The result is
# wrong now and then, or never, and a GPU reports nothing. The simulation knows every
# write and read since the last barrier, so it reports the race even if the result is
# right. With the barrier:

reports = {"1 formula": check(step("1_formula"))}
reports["1 formula"]

# %%
# The kernels are legal and right. *Efficient* is a matter of degree: these kernels read
# x three times although two times are enough, and 32 channels keep only 32 of an H100's
# 132 multiprocessors busy.
#
# ``sbnref lab trace mine.cu --task batch_norm`` writes a page that plays every access,
# on a small tensor. These are its counters: ``read`` and ``written`` are bytes,
# ``sectors`` are the sectors of 32 bytes that moved, ``again`` counts the sectors that
# had moved before, and ``steps`` are the recorded instructions of warps.

watch("1_formula")

# %%
# .. player:: own-1-formula
#
#    Watch step 1: a block goes over its channel, and then over it again
#
# Step 2: one pass
# ----------------
#
# The variance is also the mean of the squares minus the square of the mean, so one pass
# can give both sums. The kernel sums not the elements themselves but their deviations
# from a number near them. The first element of the channel will do.
#
# .. literalinclude:: ../../tutorials/kernels/own/2_one_pass.cu
#    :language: cuda
#    :start-at: // From the sums
#    :end-before: __global__ void normalize
#
# The rest of the file does not change. Why the deviations? The code without them would
# be shorter:

near = "const float first = x[at(c, 0, C, S)];"
check(step("2_one_pass", near, "const float first = 0;"), ["right"])

# %%
# If the mean is a thousand standard deviations away from zero, the square of each
# element is about a million variances, and float32 keeps seven digits. Few digits
# remain for the variance (:doc:`/learn/07_numerics_that_break`). A test on
# ``torch.randn`` would have passed. With the deviations:

reports["2 one pass"] = check(step("2_one_pass"))
reports["2 one pass"]

# %%
watch("2_one_pass")

# %%
# This saves one pass, a third of the bytes read. In the player, watch which sectors
# move again, and when.
#
# .. player:: own-2-one-pass+own-1-formula
#
#    Watch step 2 beside step 1, on the same clock
#
# Step 3: split
# -------------
#
# Each channel belongs to one block, so 32 channels keep 32 multiprocessors busy, but a
# GPU has more than a hundred. So in this step several blocks share a channel. Each
# block stores its two sums in memory. One more kernel adds them up in a fixed order, so
# two runs agree to the bit.
#
# .. literalinclude:: ../../tutorials/kernels/own/3_split.cu
#    :language: cuda
#    :start-at: // Where a block leaves
#    :end-before: __global__ void normalize
#
# ``normalize`` splits its channel likewise.

reports["3 split"] = check(step("3_split"))
reports["3 split"]

# %%
watch("3_split")

# %%
# .. player:: own-3-split+own-2-one-pass
#
#    Watch step 3 beside step 2: two blocks to a channel, and a third kernel
#
# A recording runs one block after the other, but on a GPU they run at once. So the
# clock does not show the gain of this step; the number of blocks does.
#
# Step 4: wide
# ------------
#
# The bytes are at their floor, and every multiprocessor has work. The number of
# instructions can still fall: each moves 4 bytes per lane, and can move 16.
#
# .. literalinclude:: ../../tutorials/kernels/own/4_wide.cu
#    :language: cuda
#    :start-at: template <int V>
#    :end-before: __global__ void add_up
#
# .. literalinclude:: ../../tutorials/kernels/own/4_wide.cu
#    :language: cuda
#    :start-at: // What was loaded wide
#
# A vector must not cross the end of a sample, and it must begin at a multiple of 16
# bytes. So the spatial size must be a multiple of four. It is not enough that the whole
# channel has a multiple of four elements:

check(step("4_wide", "S % 4 == 0", "N * S % 4 == 0"), ["legal"])

# %%
# With the right condition:

reports["4 wide"] = check(step("4_wide"))
reports["4 wide"]

# %%
watch("4_wide")

# %%
# .. player:: own-4-wide+own-3-split
#
#    Watch step 4 beside step 3: a lane takes four elements at once
#
# All steps
# ---------
#
# This table shows the gain of each step. Bytes are in units of x, and 3 is the floor.

size = 4 * prod(task.typical)  # bytes of the counted tensor
print(f"{'':12}{'moved':>7}{'accesses':>10}{'launches':>10}{'blocks':>8}")
for name, report in reports.items():
    assert report.passed
    found = report.parts[-1].counted
    print(
        f"{name:12}{found['moved'] / size:>7.2f}{found['accesses']:>10,}"
        f"{found['launches']:>10}{found['blocks']:>8}"
    )
folder.cleanup()

# %%
# The figure shows the two columns in which most is gained.

import matplotlib.pyplot as plt

figure, axes = plt.subplots(1, 2, figsize=(8, 2.4), sharey=True)
counts = [report.parts[-1].counted for report in reports.values()]
axes[0].barh(list(reports), [found["moved"] / size for found in counts])
axes[0].axvline(3, color="gray", linewidth=0.8)
axes[1].barh(list(reports), [found["accesses"] for found in counts])
axes[0].set(xlabel="bytes moved, over x (gray: floor)")
axes[1].set(xlabel="access instructions of warps")
axes[0].invert_yaxis()
figure.suptitle("One pass saves bytes, wide accesses save instructions")
plt.show()

# %%
# Nothing here was timed, because that takes a GPU. The files are ordinary CUDA, so nvcc
# compiles them without a change.
#
# Exercises
# ---------
#
# 1. Six kernels in ``tutorials/kernels/broken/`` compute only the statistics (the task
#    ``moments``), and each has one fault. Grade them, play them, explain each fault and
#    fix it. ``legal`` and ``right`` find five of the faults. Which fault do they miss,
#    and how can you see it?
# 2. The kernels still take one launch too many. Let the block that takes the last
#    ticket of its channel add up the partial sums. Which of the six broken kernels
#    shows the fault to avoid?
# 3. On x of shape (N, C), where S = 1, step 4 moves many times the bytes. Predict how
#    many for C channels, from the size of a sector. Then count, for C = 1, 2, 4, 8 and
#    32.
# 4. In the tree of ``a.cu``, thread t adds the number of thread t + half. Let the
#    distances grow instead, 1, 2, 4, ..., and let thread t add element 2dt + d to
#    element 2dt. The sums don't change, and the working threads are still side by side.
#    Which of the two trees has bank conflicts, and why?
