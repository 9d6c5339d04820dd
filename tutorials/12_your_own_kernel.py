r"""
12. Your own kernel
===================

**Question.** You have no GPU. Can you write CUDA kernels all the same, know that they
are right, and see what they do?

Tutorial 5 shows a ladder of kernels. Here you write one from an empty file, in four
steps, in ordinary CUDA. After each step ``sbnref lab check`` says whether the kernels
are *legal*, *right* and *efficient*, and ``sbnref lab trace`` plays what every warp did.
Both run them in the simulation of CUDA. The four steps are in
``tutorials/kernels/own/``; this page runs from a checkout, and compiles each of them
for the CPU.
"""

# %%
# The task
# --------
#
# ``sbnref lab template batch_norm > mine.cu`` gives you a file to start from: the
# function that launches your kernels, with arrays in the GPU's memory.

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
# ``sbnref lab check mine.cu --task batch_norm`` grades it. This page does so from Python,
# on fewer inputs and always the same ones.

STEPS = ladder.KERNELS / "own"
folder = TemporaryDirectory()
mine = Path(folder.name) / "mine.cu"


def check(text, parts=PARTS):
    """Grade a file with that text, as ``sbnref lab check mine.cu`` does."""
    mine.write_text(text)
    return check_kernels(mine, task, parts, examples=30, seed=0)


def step(name, was=None, now=""):
    """Return the text of a step, changed in one place if you want."""
    text = (STEPS / f"{name}.cu").read_text()
    assert was is None or text.count(was) == 1
    return text if was is None else text.replace(was, now)


def watch(name):
    """Record a step on a small tensor, as ``sbnref lab trace`` does, and count."""
    counts = record_task(STEPS / f"{name}.cu", task, (6, 2, 100)).counts()
    for names in (
        ("read", "written", "sectors", "again"),
        ("accesses", "barriers", "conflicts", "steps"),
    ):
        print(", ".join(f"{name} {counts[name]:,}" for name in names))


check(task.template(), ["right"])

# %%
# Nothing is written yet. The report names the smallest input that shows it.
#
# Step 1: the formula
# -------------------
#
# .. math::
#     \mu = \frac 1m \sum_i x_i, \qquad v = \frac 1m \sum_i (x_i - \mu)^2, \qquad
#     y_i = \frac{x_i - \mu}{\sqrt{v + \varepsilon}}.
#
# A block of threads for every channel. Thread 0 takes elements 0, 256, 512, ..., its
# neighbour those beside them, and ``sum_over_block`` adds up what they found. A second
# kernel normalizes.
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
# The barrier between the two sums is easily forgotten. What if it is not there?

barrier = "    __syncthreads();  // before the next sum uses the same shared memory\n"
check(step("1_formula", barrier), ["legal"])

# %%
# ``sum_over_block`` keeps what it adds up in shared memory. A warp that is done with the
# first sum begins with the second one, and writes where a slower warp still reads. The
# result can then be wrong, now and then or never, and a GPU says nothing. The simulation
# knows who wrote and who read since the last barrier, so it says so whatever the result.
# With the barrier:

reports = {"1 formula": check(step("1_formula"))}
reports["1 formula"]

# %%
# Legal and right. *Efficient* is a matter of degree: these kernels read x three times where
# twice would do, and 32 channels give work to 32 of an H100's 132 multiprocessors.
#
# ``sbnref lab trace mine.cu --task batch_norm`` writes a page that plays what happened,
# on a tensor that is small enough to be looked at. ``read`` and ``written`` are bytes, ``again``
# are the sectors of 32 bytes that had been moved before, ``steps`` the instructions of
# warps that are recorded.

watch("1_formula")

# %%
# .. player:: own-1-formula
#
#    Watch step 1: a block goes over its channel, and then over it again
#
# Step 2: one pass
# ----------------
#
# The variance is also the mean of the squares less the square of the mean. Then one pass
# gives both sums. Not of the elements themselves, but of their deviations from some
# number near them: the first one of the channel will do.
#
# .. literalinclude:: ../../tutorials/kernels/own/2_one_pass.cu
#    :language: cuda
#    :start-at: // From the sums
#    :end-before: __global__ void normalize
#
# All else stays as it is. Why the deviations? Without them there would be less to write:

near = "const float first = x[at(c, 0, C, S)];"
check(step("2_one_pass", near, "const float first = 0;"), ["right"])

# %%
# Where the mean is a thousand standard deviations away from zero, the square of each
# element is a million, and float32 has seven digits. The variance is what is left after
# them (:doc:`/learn/07_numerics_that_break`). A test on ``torch.randn`` would have passed.
# With the deviations:

reports["2 one pass"] = check(step("2_one_pass"))
reports["2 one pass"]

# %%
watch("2_one_pass")

# %%
# A pass less, and with it a third of what is read. Look at which sectors are moved again,
# and when.
#
# .. player:: own-2-one-pass+own-1-formula
#
#    Watch step 2 beside step 1, on the same clock
#
# Step 3: split
# -------------
#
# A channel is one block's, so 32 channels keep 32 multiprocessors busy, and a GPU has
# more than a hundred. So several blocks share a channel. Each of them leaves its two
# sums in memory, and one more kernel adds them up, in a fixed order, so that two runs
# agree to the bit.
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
# A recording runs one block after the other; on a GPU they run at once. That is why the
# clock does not show what this step gains, and the number of blocks does.
#
# Step 4: wide
# ------------
#
# The bytes are at their floor and the blocks go round. What is left are the
# instructions: each moves 4 bytes for a lane, and can move 16.
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
# A vector must not reach over the end of a sample, and has to begin at a multiple of 16
# bytes, so it takes a spatial size that is a multiple of four. A multiple of four in
# the whole channel is not enough:

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
# The way
# -------
#
# All steps together, and what each gained. Bytes are in units of x, and 3 is the least.

size = 4 * prod(task.typical)  # bytes of the tensor on which this is counted
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
# Nothing here was timed: that takes a GPU. The files are ordinary CUDA, so nvcc compiles
# them as they are.
#
# Exercises
# ---------
#
# 1. Six kernels in ``tutorials/kernels/broken/`` compute the statistics alone (the task
#    ``moments``), and are wrong in one place each. Grade them, play them, say what is
#    wrong, and mend it. Five are found by ``legal`` and ``right``;
#    which one is not, and what shows it?
# 2. One launch too many is left. Let the block that takes the last ticket of its channel
#    add up the partial sums. Which of the six shows what can go wrong?
# 3. On x of shape (N, C), where S = 1, step 4 moves many times the bytes. Predict how many
#    for C channels, from the size of a sector. Then count, for C = 1, 2, 4, 8 and 32.
# 4. In the tree of ``a.cu`` thread t takes what thread t + half has. Let the distances
#    grow instead, 1, 2, 4, ..., and thread t add element 2dt + d to element 2dt. The sums
#    are the same, and the threads that work are side by side as before. Which of the two
#    trees has bank conflicts, and why?
