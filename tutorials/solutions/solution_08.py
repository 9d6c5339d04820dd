"""Solutions to tutorial 8, scaling out."""

import statistics
import time

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import sbnref

# 1. 2 (3C + 2) 8 (G - 1) / G = (2C + 1) 4 (G - 1) gives G = 4 (3C + 2) / (2C + 1), which
# is just above 6 for any C.
C = 256
crossing = 4 * (3 * C + 2) / (2 * C + 1)
print(f"1. the curves cross at {crossing:.3f} ranks")
for g, gather_is_cheaper in ((6, True), (7, False)):
    ring, gather = 2 * (3 * C + 2) * 8 * (g - 1) / g, (2 * C + 1) * 4 * (g - 1)
    assert (gather < ring) == gather_is_cheaper

# 2. Each of the 53 layers makes two collectives in a step, forward and backward.
cost = 53 * 2 * 20e-6
print(f"2. {1e3 * cost:.2f} ms, {cost / 0.2:.1%} of the step")
assert abs(cost - 2.12e-3) < 1e-12


# 3. Up to a few kilobytes the time is latency and does not depend on the size.
def seconds(size) -> float:
    """Return the median time of 30 calls (runs on every rank)."""
    tensor, times = torch.zeros(size), []
    for _ in range(30):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(tensor)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


with sbnref.Ranks(2) as ranks:
    measured = {size: ranks.run(seconds, size)[0] for size in (10, 10**4, 10**6)}
print("3.", *(f"{size} numbers: {1e6 * t:.0f} µs;" for size, t in measured.items()))


# 4. Ranks are numbered machine by machine, so the groups are the rows of an 8 x 8 mesh.
# Here with 2 machines of 2 ranks: the mean of a row does not depend on the other row.
def within_a_machine(machines, each) -> float:
    """Return the mean of this rank's machine (runs on every rank)."""
    mesh = init_device_mesh("cpu", (machines, each), mesh_dim_names=("machine", "gpu"))
    layer = sbnref.SyncBatchNorm(1, group=mesh["gpu"], stats_mode="exact", momentum=1.0)
    layer(torch.full((2, 1), float(dist.get_rank())))
    return layer.running_mean.item()


groups = torch.arange(64).view(8, 8)
print("4. groups:", *(f"{row[0]} to {row[-1]};" for row in groups.tolist()))
assert all(len({rank // 8 for rank in row}) == 1 for row in groups.tolist())
assert sbnref.launch(within_a_machine, 4, 2, 2) == [0.5, 0.5, 2.5, 2.5]
