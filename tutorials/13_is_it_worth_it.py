r"""
13. Is it worth it?
===================

Measure the gain of synchronizing on your own network and data. **Time:** about 15
minutes, and 45 for the exercises. **You need:** tutorial 1.

**Question.** Synchronizing costs two collectives per layer and step. How much better
does a network learn in return?

The answer depends on the network, the data and the batch size. This page measures one
small case, which you can change and run again: handwritten digits on four ranks, with
few samples on each rank.
"""

# %%
# Two training runs
# -----------------
#
# In the first run the ranks synchronize. In the second run each rank normalizes its own
# samples, as ``DistributedDataParallel`` does with ordinary batch norms: it averages
# the gradients and keeps the running statistics of rank 0 for eval mode.
#
# One process can compute both runs. Synchronized ranks compute the results of
# ``BatchNorm2d`` on the whole batch. For separate ranks, the layer below normalizes
# each part of the batch by itself.

from functools import partial

import matplotlib.pyplot as plt
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import sbnref
from sbnref.demo import load_digits, network

RANKS, STEPS, SEEDS, SIZES = 4, 100, 5, (1, 4, 16)  # sizes: samples per rank
images, labels, test_images, test_labels = load_digits()


class Separate(nn.BatchNorm2d):
    """Normalize each rank's part of the batch; rank 0 moves the running statistics."""

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        first, *others = x.chunk(RANKS)
        rest = [
            F.batch_norm(part, None, None, self.weight, self.bias, training=True)
            for part in others
        ]
        return torch.cat([super().forward(first), *rest])


def train(norm, size, seed, steps=STEPS):
    """Train on one process with the batch of all ranks, or on a rank with its part."""
    torch.manual_seed(seed)  # equal weights and batches for every norm
    model = wrapped = network(norm)
    part = slice(None)  # of the batch
    if dist.is_initialized():
        wrapped = DistributedDataParallel(model)
        part = slice(dist.get_rank() * size, (dist.get_rank() + 1) * size)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.05, total_steps=steps)
    for batch in torch.randint(len(labels), (steps, RANKS * size)):
        optimizer.zero_grad()
        F.cross_entropy(wrapped(images[batch[part]]), labels[batch[part]]).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


# %%
# Is this shortcut right? Four real ranks train for three steps in both ways. Their
# weights and running statistics must equal those of one process, up to rounding.

synchronized = partial(sbnref.SyncBatchNorm, stats_mode="exact")
with sbnref.Ranks(RANKS) as ranks:
    for real, shortcut in ((synchronized, nn.BatchNorm2d), (nn.BatchNorm2d, Separate)):
        expected = train(shortcut, 2, 0, steps=3).state_dict()
        got = ranks.run(lambda norm: train(norm, 2, 0, steps=3).state_dict(), real)[0]
        off = max((got[key] - expected[key]).abs().max().item() for key in expected)
        print(f"{shortcut.__name__:>11}: off by at most {off:.0e}")
        assert off < 1e-4

# %%
# The measurement
# ---------------
#
# Each run is repeated with several seeds. A seed sets the weights and the batches. Both
# runs share it, so we can compute the difference seed by seed. No run sees the digits
# of the test set.


@torch.no_grad()
def evaluate(model):
    """Return accuracy in % and loss on the test set, in eval mode."""
    logits = model(test_images)
    accuracy = 100 * (logits.argmax(1) == test_labels).float().mean()
    return accuracy.item(), F.cross_entropy(logits, test_labels).item()


threads = torch.get_num_threads()
torch.set_num_threads(1)  # in a network this small, threads wait for one another
norms = {"synchronized": nn.BatchNorm2d, "separate": Separate}
results = torch.tensor(
    [
        [evaluate(train(norm, size, seed)) for norm in norms.values()]
        for size in SIZES
        for seed in range(SEEDS)
    ]
).view(len(SIZES), SEEDS, 2, 2)  # (sizes, seeds, norms, accuracy and loss)
torch.set_num_threads(threads)
gain = (results[:, :, 0] - results[:, :, 1]) * torch.tensor([1, -1])

print(f"{STEPS} steps, {len(test_labels)} test digits, mean ± std over {SEEDS} seeds")
for size, values, gains in zip(SIZES, results.unbind(), gain, strict=True):
    print(f"samples per rank: {size}")
    for name, of in zip((*norms, "gain"), (*values.unbind(1), gains), strict=True):
        a, b = of.T
        print(f"  {name:12}  accuracy {a.mean():5.1f} ± {a.std():.1f} %", end="")
        print(f"  loss {b.mean():.3f} ± {b.std():.3f}")

# %%
# A positive gain means that synchronizing is better: more accuracy, less loss. In the
# figure a dot is a seed, and a bar is the mean.

figure, axes = plt.subplots(1, 2, figsize=(8, 3.2))
sizes = [str(size) for size in SIZES]
units = ("gain in accuracy, %", "gain in loss")
for ax, y, unit in zip(axes, gain.unbind(-1), units, strict=True):
    ax.axhline(0, color="gray", linewidth=0.8)
    ax.plot(sizes, y, "o", color="C0", alpha=0.5)
    ax.plot(sizes, y.mean(1), "_k", markersize=24, markeredgewidth=2)
    ax.set(ylabel=unit, xlabel="samples per rank")
    ax.margins(x=0.15)
figure.suptitle("Synchronizing gains most with one sample per rank")
plt.show()

# %%
# Accuracy moves by whole digits, so the loss is the finer measure. The build of this
# page stops if one of these statements about the loss is false:

one, sixteen = gain[0, :, 1], gain[-1, :, 1]
assert (one > 0).all()  # with one sample per rank synchronizing helps with every seed,
assert one.mean() > 2 * one.std()  # by more than twice the spread over the seeds;
assert sixteen.mean().abs() < one.mean() / 10  # with 16 the gain is less than a tenth.

# %%
# The noise of the statistics is a likely reason (:doc:`01_why_synchronize`). Four ranks
# together halve it. With 16 samples per rank, only a quarter of the noise is left to be
# halved.
#
# This page says nothing about other networks, data, learning rates or longer runs:
# measure your own. :doc:`/benchmarks` has the time that synchronizing takes.
#
# Exercises
# ---------
#
# 1. Train with a learning rate of 0.01 and of 0.1. Is there still a gain in loss with
#    one sample per rank, with every seed?
# 2. Take one image, then four images, and compute the variance of each channel before
#    the second batch norm. How far is it from the variance over all images? Predict the
#    ratio of the two errors, then measure it.
# 3. Sort the digits by class, and let each rank see its own quarter of them. Is there a
#    gain with 16 samples per rank now? Why?
