r"""
8. Scaling out
==============

**Question.** What does synchronizing cost as the number of ranks grows, and what can
you do about it?
"""

# %%
# What is sent
# ------------
#
# sbnref sends :math:`3C + 2` float64 in the forward and :math:`2C` in the backward
# pass, through one all-reduce each. :class:`torch.nn.SyncBatchNorm` gathers every
# rank's :math:`2C + 1` float32, so what a rank *receives* grows with the world:

import matplotlib.pyplot as plt

C = 256
worlds = [2**k for k in range(1, 13)]
all_reduce = [
    2 * (3 * C + 2) * 8 * (g - 1) / g for g in worlds
]  # a ring moves 2 (G-1)/G of it
all_gather = [(2 * C + 1) * 4 * (g - 1) for g in worlds]

figure, ax = plt.subplots(figsize=(7, 3.2))
ax.loglog(
    worlds, all_gather, "o-", base=2, label="all-gather of every rank's statistics"
)
ax.loglog(worlds, all_reduce, "o-", base=2, label="all-reduce of the payload")
ax.set(
    xlabel="ranks",
    ylabel="bytes",
    title=f"received by each rank in a forward pass, {C} channels",
)
ax.legend(frameon=False)
plt.show()

# %%
# Up to a few ranks the gather is cheaper, since the payload is float64 and a ring moves
# it twice. From then on it is not.
#
# What it takes here
# ------------------
#
# Measured on the machine that built this page, over the loopback interface: the median
# of 50 calls each. Where there are more ranks than cores they take turns, and a call
# waits for all of them.

import os
import statistics
import time

import torch
import torch.distributed as dist

import sbnref


def measure(collective):
    """Runs on every rank: microseconds of a call."""
    gathers = collective == "all-gather"
    sent = (
        torch.zeros(2 * C + 1)
        if gathers
        else torch.zeros(3 * C + 2, dtype=torch.float64)
    )
    received = [torch.zeros_like(sent) for _ in range(dist.get_world_size())]
    times = []
    for _ in range(50):
        dist.barrier()
        start = time.perf_counter()
        if gathers:
            dist.all_gather(received, sent)
        else:
            dist.all_reduce(sent)
        times.append(1e6 * (time.perf_counter() - start))
    return statistics.median(times)


measured = {"all-gather": [], "all-reduce": []}
sizes = [2, 3, 4]
for world_size in sizes:
    with sbnref.Ranks(world_size) as ranks:
        for collective, values in measured.items():
            values.append(ranks.run(measure, collective)[0])

print(f"{os.cpu_count()} cores, torch {torch.__version__}")
for collective, values in measured.items():
    print(
        collective,
        *(f"{g} ranks: {v:.0f} µs" for g, v in zip(sizes, values, strict=True)),
    )

# %%
# A few kilobytes are all latency (exercise 3 measures it): what counts is how many
# collectives there are, not how much they carry. A network with 50 such layers makes 100
# of them in a step. :doc:`/benchmarks` fits a model of latency and bandwidth to
# measurements and says what follows for larger worlds.
#
# Synchronize among fewer
# -----------------------
#
# The noise of the statistics falls with the square root of the number of samples
# (:doc:`01_why_synchronize`), so a few ranks' samples may be enough. A *group* limits who
# synchronizes with whom: here four ranks in two pairs.


def in_pairs():
    """Runs on every rank: the mean that its pair agrees on."""
    rank = dist.get_rank()
    pairs = [
        dist.new_group([0, 1]),
        dist.new_group([2, 3]),
    ]  # every rank makes all groups
    layer = sbnref.SyncBatchNorm(
        1, group=pairs[rank // 2], stats_mode="exact", momentum=1.0
    )
    layer(torch.full((2, 1), float(rank)))
    return layer.running_mean.item()


print(sbnref.launch(in_pairs, 4))

# %%
# A :class:`torch.distributed.device_mesh.DeviceMesh` names such groups. In a mesh of
# replicas and shards the layer synchronizes along one of them:

from torch.distributed.device_mesh import init_device_mesh


def along_a_mesh():
    """Runs on every rank: the mean along the dimension 'replica'."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replica", "shard"))
    layer = sbnref.SyncBatchNorm(
        1, group=mesh["replica"], stats_mode="exact", momentum=1.0
    )
    layer(torch.full((2, 1), float(dist.get_rank())))
    return layer.running_mean.item()


print(sbnref.launch(along_a_mesh, 4))

# %%
# On more than one machine
# ------------------------
#
# ``tutorials/train.py`` is a whole training script. It runs as one process, on this
# machine's cores or GPUs, and on several machines:
#
# .. code-block:: console
#
#    $ python tutorials/train.py
#    $ torchrun --nproc-per-node=4 tutorials/train.py
#    $ torchrun --nnodes=2 --nproc-per-node=8 --rdzv-backend=c10d --rdzv-endpoint=first-machine:29500 tutorials/train.py
#
# Exercises
# ---------
#
# 1. At which number of ranks do the two curves of the first figure cross? Solve, then
#    read it off.
# 2. A ResNet-50 has 53 batch norms. Suppose a collective takes 20 µs. What does
#    synchronizing cost per step, and what share of a step of 200 ms is it?
# 3. Measure ``dist.all_reduce`` of 10, 10⁴ and 10⁶ numbers. From which size on does the
#    time grow?
# 4. Choose groups for 64 GPUs in 8 machines such that statistics never cross the
#    network between machines. (``torchrun`` numbers ranks machine by machine.)
