r"""
1. Why synchronize?
===================

**Question.** A batch of 64 is split over 16 processes. Each normalizes its own 4
samples. Is that the same training?
"""

# %%
# Take one channel whose elements are drawn from a normal distribution with mean 2 and
# standard deviation 3, and look at the mean and the standard deviation that a process
# sees, for batches of growing size. Their spread is their standard deviation over many
# batches.

import matplotlib.pyplot as plt
import torch

torch.manual_seed(0)
sizes = [2, 4, 8, 16, 32, 64, 128, 256]
draws = [torch.randn(2000, n) * 3 + 2 for n in sizes]

figure, axes = plt.subplots(1, 2, figsize=(8, 3), sharex=True)
for ax, name, estimates, predicted in (
    (axes[0], "mean", [d.mean(1) for d in draws], [3 / n**0.5 for n in sizes]),
    (
        axes[1],
        "standard deviation",
        [d.std(1, correction=0) for d in draws],
        [3 / (2 * n) ** 0.5 for n in sizes],
    ),
):
    ax.loglog(
        sizes,
        [e.std() for e in estimates],
        "o",
        color="#00798c",
        label="measured, 2000 batches",
    )
    ax.loglog(sizes, predicted, color="#d1495b", label="predicted")
    ax.set(title=f"spread of the {name}", xlabel="samples in a batch")
axes[0].legend(frameon=False)
plt.show()

# %%
# The noise in the statistics falls with the square root of the batch: 4 samples are 4
# times noisier than 64. (The prediction for the standard deviation,
# :math:`\sigma/\sqrt{2n}`, is for large :math:`n`.) Small batches per process are not
# the same training as one large batch; :doc:`13_is_it_worth_it` measures the difference.
#
# The ranks may also hold *different* data
# ----------------------------------------
#
# Now let each of four ranks hold samples of its own kind: the means of the ranks
# differ. Every rank normalizes by itself, and then all together.

means = torch.tensor([-3.0, -1.0, 1.0, 3.0])
x = torch.randn(4, 500) * 0.5 + means[:, None]  # (ranks, samples)
alone = (x - x.mean(1, keepdim=True)) / x.std(1, correction=0, keepdim=True)
together = (x - x.mean()) / x.std(correction=0)

figure, axes = plt.subplots(1, 3, figsize=(9, 2.6), sharey=True)
titles = ("before", "each rank alone", "all ranks together")
for ax, values, title in zip(axes, (x, alone, together), titles, strict=True):
    for rank in range(4):
        ax.hist(values[rank], bins=40, alpha=0.6, label=f"rank {rank}")
    ax.set(title=title, yticks=[])
axes[1].legend(frameon=False, fontsize=8)
plt.show()

# %%
# Alone, each rank removes what distinguishes its data from the others': after
# normalization the ranks look alike. The formula says how much is lost. The variance of
# all elements is the mean of the variances *plus* the variance of the means:

within, between = x.var(1, correction=0).mean(), x.mean(1).var(correction=0)
print(f"within the ranks  {within:.3f}\nbetween the ranks {between:.3f}")
print(
    f"together          {within + between:.3f}   of all elements {x.var(correction=0):.3f}"
)

# %%
# Synchronized batch normalization uses the sum. :doc:`/derivations/modes` derives it.
#
# The layer does it
# -----------------
#
# Four processes, each with its own kind of data; the layer in each gives the output
# that one process would give on the whole batch.

import torch.distributed as dist

import sbnref


def normalize(data):
    """Runs on every rank: this rank's share through the layer."""
    layer = sbnref.SyncBatchNorm(1, stats_mode="exact")
    return layer(data[dist.get_rank(), :, None])


outputs = sbnref.launch(normalize, 4, x)
difference = (torch.stack(outputs)[..., 0] - together).abs().max()
print(f"largest difference from one process: {difference:.0e}")

# %%
# Exercises
# ---------
#
# 1. In the first figure, how many samples does a process need for the batch's mean to
#    be within 0.1 standard deviations 19 times out of 20?
# 2. Let the ranks' means be equal but their standard deviations 0.5, 1, 2 and 4. What
#    does each rank lose by normalizing alone now? Predict, then draw it.
# 3. With 4 ranks of 4 samples, which share of the variance of the normalized values is
#    noise from the statistics? Compare ``stats_mode='exact'`` with no synchronization
#    over 1000 draws.
