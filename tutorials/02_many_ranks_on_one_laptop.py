"""
2. Many ranks on one laptop
===========================

Run and debug several communicating processes on your own machine. **Time:** about 10
minutes, and 30 for the exercises. **You need:** the basics of PyTorch.

**Question.** How can you try distributed code without a cluster?

A *rank* is a process that takes part in a *process group*. The processes don't need
machines or GPUs of their own: with the backend *gloo* they communicate over the
loopback interface of one machine.
"""

# %%
# Run a function on every rank
# ----------------------------
#
# :func:`sbnref.launch` starts several processes and joins them in a group. It runs a
# function in each process and returns the results in a list.

import os

import torch
import torch.distributed as dist

import sbnref


def identify():
    """Return the rank, the number of ranks and the process id (runs on every rank)."""
    return dist.get_rank(), dist.get_world_size(), os.getpid()


for rank, world_size, pid in sbnref.launch(identify, 3):
    print(f"rank {rank} of {world_size}, its own process: {pid != os.getpid()}")

# %%
# Communicate
# -----------
#
# A *collective* is a function that all ranks call together. After an all-reduce every
# rank holds the sum over all ranks. Synchronized batch normalization needs no other
# collective.


def add_up():
    """Compute 1 + 2 + 3 (runs on every rank)."""
    tensor = torch.tensor([dist.get_rank() + 1.0])
    dist.all_reduce(tensor)
    return tensor.item()


print(sbnref.launch(add_up, 3))

# %%
# Keep the ranks alive
# --------------------
#
# Starting processes takes long, because each process imports torch.
# :class:`sbnref.Ranks` starts the processes once and runs many functions on them. A
# function may use variables from outside: they are copied to the ranks.

import time

import matplotlib.pyplot as plt

value = 10.0
seconds = {}

start = time.perf_counter()
with sbnref.Ranks(3) as ranks:
    for call in ("start and first call", "second call", "third call"):
        print(ranks.run(lambda: value * (dist.get_rank() + 1)))
        seconds[call] = time.perf_counter() - start
        start = time.perf_counter()

figure, ax = plt.subplots(figsize=(7, 2))
ax.bar_label(ax.barh(list(seconds), seconds.values()), fmt="%.3f s", padding=4)
ax.invert_yaxis()
ax.set(title="The start takes most of the time", xlabel="seconds")
ax.margins(x=0.15)
plt.show()

# %%
# Failing ranks
# -------------
#
# If one rank fails, the other ranks would wait for it in their next collective forever.
# The launcher ends them and shows the traceback of the failing rank.


def fail_on_rank_1():
    """Raise an error on rank 1 before the collective (runs on every rank)."""
    if dist.get_rank() == 1:
        raise ValueError("this rank has a bad day")
    dist.barrier()


try:
    sbnref.launch(fail_on_rank_1, 2)
except sbnref.RankError as error:
    print(f"rank {error.rank} failed")
    print(str(error).splitlines()[-1])

# %%
# The launcher also ends a rank that takes longer than a timeout.

try:
    sbnref.launch(lambda: time.sleep(60 * dist.get_rank()), 2, timeout=10)
except TimeoutError as error:
    print(error)

# %%
# One script for laptop and cluster
# ---------------------------------
#
# ``torchrun`` starts the processes itself. In a script under ``torchrun``,
# :func:`sbnref.launch` uses the existing processes. Here is a script of two lines. It
# runs once by itself and once under ``torchrun``, where every process runs the script
# and prints:

import subprocess
import sys
import tempfile

script = """
import sbnref, torch.distributed as dist
print(sbnref.launch(lambda: f"rank {dist.get_rank()} of {dist.get_world_size()}", 2))
"""
torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
    file.write(script)
    file.flush()
    for options in ([], torchrun):
        command = [sys.executable, *options, file.name]
        print(subprocess.run(command, capture_output=True, text=True).stdout)

# %%
# Exercises
# ---------
#
# 1. Write an all-reduce of maxima with ``dist.all_gather``. How many numbers does each
#    rank receive with 3 ranks, and how many with 300?
# 2. Let rank 0 call ``dist.all_reduce`` and rank 1 ``dist.barrier``. How does the run
#    end, and after how long? (Set ``timeout``.)
# 3. Pass a tensor to each rank and return its gradient. Do the processes share the
#    tensor, or does each process get a copy?
