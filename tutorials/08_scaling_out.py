r"""
8. Scaling out
==============

Estimate the communication cost of synchronizing, and reduce it with groups. **Time:**
about 15 minutes, and 40 for the exercises. **You need:** tutorials 1 and 2.

**Question.** How does the cost of synchronizing grow with the number of ranks, and how
can you reduce it?
"""

# %%
# Bytes received
# --------------
#
# sbnref sends :math:`3C + 2` float64 numbers in the forward pass and :math:`2C` in the
# backward pass, through one all-reduce each. :class:`torch.nn.SyncBatchNorm` gathers
# :math:`2C + 1` float32 numbers from every rank, so the bytes that a rank *receives*
# grow with the number of ranks:

import matplotlib.pyplot as plt

C = 256
worlds = [2**k for k in range(1, 13)]
all_gather = [(2 * C + 1) * 4 * (g - 1) for g in worlds]
# A ring moves the payload 2 (G-1)/G times.
all_reduce = [(3 * C + 2) * 8 * 2 * (g - 1) / g for g in worlds]

figure, ax = plt.subplots(figsize=(7, 3.2))
ax.loglog(worlds, all_gather, "o-", base=2, label="all-gather (torch)")
ax.loglog(worlds, all_reduce, "o-", base=2, label="all-reduce (sbnref)")
ax.set(xlabel="ranks", ylabel=f"bytes per rank, {C} channels")
ax.set_title("An all-gather grows with the ranks, an all-reduce does not")
ax.legend()
plt.show()

# %%
# With a few ranks the all-gather is cheaper, because the payload is float64 and a ring
# moves it twice. With more ranks the all-reduce is cheaper.
#
# Measured times
# --------------
#
# The machine that built this page measured the two collectives over the loopback
# interface. Each number is the median of 50 calls. If there are more ranks than cores,
# the ranks take turns, and a call waits for all of them.

import os
import statistics
import time

import torch
import torch.distributed as dist

import sbnref


def measure(collective):
    """Return the microseconds of a call (runs on every rank)."""
    if collective == "all-gather":
        sent = torch.zeros(2 * C + 1)
    else:
        sent = torch.zeros(3 * C + 2, dtype=torch.float64)
    received = [torch.zeros_like(sent) for _ in range(dist.get_world_size())]
    times = []
    for _ in range(50):
        dist.barrier()
        start = time.perf_counter()
        if collective == "all-gather":
            dist.all_gather(received, sent)
        else:
            dist.all_reduce(sent)
        times.append(1e6 * (time.perf_counter() - start))
    return statistics.median(times)


print(f"{os.cpu_count()} cores, torch {torch.__version__}")
for world_size in (2, 3, 4):
    with sbnref.Ranks(world_size) as ranks:
        for collective in ("all-gather", "all-reduce"):
            microseconds = ranks.run(measure, collective)[0]
            print(f"{world_size} ranks, {collective}: {microseconds:.0f} µs")

# %% For a few kilobytes, the time is all latency (exercise 3 measures it). So the
# number of collectives matters, not their size. A network with 50 such layers issues
# 100 collectives in a step. :doc:`/benchmarks` has measured times for more ranks.
#
# Groups
# ------
#
# The noise of the statistics falls with the square root of the number of samples
# (:doc:`01_why_synchronize`), so the samples of a few ranks may be enough. A *group*
# limits the ranks that synchronize with each other. Here four ranks form two pairs.


def in_pairs():
    """Return the mean that a pair of ranks agrees on (runs on every rank)."""
    rank = dist.get_rank()
    pairs = [dist.new_group([0, 1]), dist.new_group([2, 3])]  # every rank makes both
    layer = sbnref.SyncBatchNorm(
        1, group=pairs[rank // 2], stats_mode="exact", momentum=1.0
    )
    layer(torch.full((2, 1), float(rank)))
    return layer.running_mean.item()


print(sbnref.launch(in_pairs, 4))

# %%
# A :class:`torch.distributed.device_mesh.DeviceMesh` gives such groups names. In a mesh
# of replicas and shards, the layer synchronizes along one of the two dimensions:

from torch.distributed.device_mesh import init_device_mesh


def along_a_mesh():
    """Return the mean along the dimension 'replica' (runs on every rank)."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replica", "shard"))
    layer = sbnref.SyncBatchNorm(
        1, group=mesh["replica"], stats_mode="exact", momentum=1.0
    )
    layer(torch.full((2, 1), float(dist.get_rank())))
    return layer.running_mean.item()


print(sbnref.launch(along_a_mesh, 4))

# %%
# Several machines
# ----------------
#
# ``tutorials/train.py`` is a complete training script. It runs as one process, on all
# cores or GPUs of one machine, and on several machines:
#
# .. code-block:: console
#
#    $ python tutorials/train.py
#    $ torchrun --nproc-per-node=4 tutorials/train.py
#    $ torchrun --nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d \
#        --rdzv-endpoint=first-machine:29500 tutorials/train.py
#
# Exercises
# ---------
#
# 1. At which number of ranks do the two curves of the first figure cross? Solve for it,
#    then check it in the figure.
# 2. A ResNet-50 has 53 batch norms. Suppose that a collective takes 20 µs. How much
#    time does synchronizing take per step, and which share of a step of 200 ms is this?
# 3. Measure ``dist.all_reduce`` of 10, 10⁴ and 10⁶ numbers. From which size on does the
#    time grow?
# 4. Choose groups for 64 GPUs in 8 machines so that the statistics never cross the
#    network between machines. (``torchrun`` numbers the ranks machine by machine.)
