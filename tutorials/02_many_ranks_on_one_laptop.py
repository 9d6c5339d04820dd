"""
2. Many ranks on one laptop
===========================

**Question.** How do you try distributed code without a cluster?

A *rank* is a process that takes part in a *process group*. Nothing says that the
processes need machines or GPUs of their own: with the backend *gloo* they talk over
the loopback interface.
"""

# %%
# Run a function everywhere
# -------------------------
#
# :func:`sbnref.launch` starts a number of processes, joins them in a group, runs a
# function in each and returns what each returned.

import os

import torch
import torch.distributed as dist

import sbnref


def who_am_i():
    """Runs on every rank."""
    return dist.get_rank(), dist.get_world_size(), os.getpid()


for rank, world_size, pid in sbnref.launch(who_am_i, 3):
    print(f"rank {rank} of {world_size}, its own process: {pid != os.getpid()}")

# %%
# Talk to each other
# ------------------
#
# A *collective* is a function that all ranks call together. After an all-reduce every
# rank holds the sum. It is the one collective that synchronized batch normalization
# needs.


def add_up():
    """Runs on every rank: 1 + 2 + 3."""
    tensor = torch.tensor([dist.get_rank() + 1.0])
    dist.all_reduce(tensor)
    return tensor.item()


print(sbnref.launch(add_up, 3))

# %%
# Keep the ranks
# --------------
#
# Starting processes takes seconds, because each imports torch. A :class:`sbnref.Ranks`
# starts them once and runs many functions on them. Functions may use the variables
# around them, for they are sent by value.

import time

value = 10.0

with sbnref.Ranks(3) as ranks:
    for _ in range(3):
        start = time.perf_counter()
        sums = ranks.run(lambda: value * (dist.get_rank() + 1))
        print(sums, f"after {time.perf_counter() - start:.2f} s")

# %%
# When a rank fails
# -----------------
#
# The others would wait for it in their next collective for ever. The launcher ends
# them, and shows the failing rank's own traceback.


def one_fails():
    """Runs on every rank; rank 1 does not reach the collective."""
    if dist.get_rank() == 1:
        raise ValueError("this rank has a bad day")
    dist.barrier()


try:
    sbnref.launch(one_fails, 2)
except sbnref.RankError as error:
    print(f"rank {error.rank} failed")
    print(str(error).splitlines()[-1])

# %%
# A rank that is late is ended after a timeout.

try:
    sbnref.launch(lambda: time.sleep(60 * dist.get_rank()), 2, timeout=10)
except TimeoutError as error:
    print(error)

# %%
# The same script on a cluster
# ----------------------------
#
# Started by ``torchrun``, the processes are there already, and :func:`sbnref.launch`
# uses them. Here is a script of two lines, run both ways; under ``torchrun`` it is every
# process's script, so each prints:

import subprocess
import sys
import tempfile

script = """
import sbnref, torch.distributed as dist
print(sbnref.launch(lambda: f"rank {dist.get_rank()} of {dist.get_world_size()}", 2))
"""
with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
    file.write(script)
    file.flush()
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=2",
    ]
    for command in ([sys.executable], torchrun):
        print(
            subprocess.run([*command, file.name], capture_output=True, text=True).stdout
        )

# %%
# Exercises
# ---------
#
# 1. Write an all-reduce of maxima with ``dist.all_gather``. How many numbers does each
#    rank receive, for 3 ranks and for 300?
# 2. Let rank 0 call ``dist.all_reduce`` and rank 1 ``dist.barrier``. What happens, and
#    after how long? (Set ``timeout``.)
# 3. Pass a tensor to each rank and return its gradient. Is the tensor shared between
#    the processes, or copied?
