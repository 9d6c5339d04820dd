r"""
1. Why synchronize?
===================

Measure the noise in the statistics of small batches, and see how synchronizing reduces
it. **Time:** about 10 minutes, and 30 for the exercises. **You need:** the basics of
PyTorch.

**Question.** A batch of 64 samples is split over 16 processes. Each process normalizes
its own 4 samples. Is this the same training as normalizing all 64 samples together?
"""

# %%
# The noise of small batches
# --------------------------
#
# Take one channel. Its elements come from a normal distribution with mean 2 and
# standard deviation 3. Each process estimates this mean and this standard deviation
# from its own batch. The figure shows the spread of the two estimates, which is their
# standard deviation over 2000 batches.

import matplotlib.pyplot as plt
import torch

torch.manual_seed(0)
sizes = [2, 4, 8, 16, 32, 64, 128, 256]
draws = [torch.randn(2000, n) * 3 + 2 for n in sizes]

figure, axes = plt.subplots(1, 2, figsize=(8, 3.2), sharex=True)
axes[0].loglog(sizes, [d.mean(1).std() for d in draws], "o", label="measured")
axes[0].loglog(sizes, [3 / n**0.5 for n in sizes], label="predicted")
axes[1].loglog(sizes, [d.std(1, correction=0).std() for d in draws], "o")
axes[1].loglog(sizes, [3 / (2 * n) ** 0.5 for n in sizes])
for ax, estimate in zip(axes, ("mean", "standard deviation"), strict=True):
    ax.set(ylabel=f"spread of the {estimate}", xlabel="samples in a batch")
axes[0].legend()
figure.suptitle("The smaller the batch, the noisier its statistics")
plt.show()

# %%
# The noise in the statistics falls with the square root of the batch size: 4 samples
# are 4 times noisier than 64. (The prediction for the standard deviation,
# :math:`\sigma/\sqrt{2n}`, holds for large :math:`n`.) So small batches per process are
# not the same training as one large batch. :doc:`13_is_it_worth_it` measures the
# difference.
#
# Ranks with different data
# -------------------------
#
# Now each of four ranks holds its own kind of samples, so the means of the ranks
# differ. First each rank normalizes by itself, then all ranks normalize together.

means = torch.tensor([-3.0, -1.0, 1.0, 3.0])
x = torch.randn(4, 500) * 0.5 + means[:, None]  # (ranks, samples)
alone = (x - x.mean(1, keepdim=True)) / x.std(1, correction=0, keepdim=True)
together = (x - x.mean()) / x.std(correction=0)

figure, axes = plt.subplots(1, 3, figsize=(9, 2.8), sharey=True)
titles = ("before", "each rank alone", "all ranks together")
for ax, values, title in zip(axes, (x, alone, together), titles, strict=True):
    for rank in range(4):
        ax.hist(values[rank], bins=40, alpha=0.6, label=f"rank {rank}")
    ax.set(xlabel=title, yticks=[])
axes[1].legend(fontsize=8)
figure.suptitle("Ranks that normalize alone lose the differences between them")
plt.show()

# %%
# A rank that normalizes alone removes the difference between its own data and the data
# of the other ranks: afterwards all ranks look alike. A formula gives the size of this
# loss. The variance of all elements is the mean of the variances *plus* the variance of
# the means:

within, between = x.var(1, correction=0).mean(), x.mean(1).var(correction=0)
print(f"variance within the ranks:  {within:.3f}")
print(f"variance between the ranks: {between:.3f}")
print(f"sum of both:                {within + between:.3f}")
print(f"variance of all elements:   {x.var(correction=0):.3f}")

# %%
# Synchronized batch normalization uses this sum. :doc:`/derivations/modes` derives it.
#
# The layer
# ---------
#
# Four processes run the layer, each on its own kind of data. Each process gets the
# output that one process would compute from the whole batch.

import torch.distributed as dist

import sbnref


def normalize(data):
    """Normalize this rank's share of the data (runs on every rank)."""
    layer = sbnref.SyncBatchNorm(1, stats_mode="exact")
    return layer(data[dist.get_rank(), :, None])


outputs = sbnref.launch(normalize, 4, x)
difference = (torch.stack(outputs)[..., 0] - together).abs().max()
print(f"largest difference from one process: {difference:.0e}")

# %%
# Exercises
# ---------
#
# 1. Look at the first figure. How many samples does a process need so that the batch
#    mean is within 0.1 standard deviations of the true mean 19 times out of 20?
# 2. Give the ranks equal means, but standard deviations of 0.5, 1, 2 and 4. Which
#    information does a rank lose now when it normalizes alone? Predict it, then draw
#    it.
# 3. Take 4 ranks with 4 samples each. Which share of the variance of the normalized
#    values is noise from the statistics? Compare ``stats_mode='exact'`` with no
#    synchronization over 1000 draws.
