r"""
3. When a rank is empty
=======================

**Question.** A detector's head sees a varying number of boxes, and in some steps a
process has none. What does ``stats_mode='default'`` do with it, and how wrong is it,
exactly?

Mode ``'default'``, which is mmcv's, averages the ranks' means and variances and
divides by the number of ranks, empty ones included. If :math:`e` of :math:`G` ranks
are empty, then (:doc:`/derivations/modes`)

.. math::
    \mu_{\text{default}} = \left(1 - \frac eG\right) \bar\mu, \qquad
    v_{\text{default}} = \left(1 - \frac eG\right) \left( \bar v + \frac{e^2}{G^2} \bar\mu^2 \right),

with :math:`\bar\mu` and :math:`\bar v` the statistics of the ranks that have data.
"""

# %%
# A controlled example
# --------------------
#
# Four ranks, of which 0 to 3 are empty; all others draw from the same distribution.
# Three channels have a standard deviation of 1 and means of 0, 1 and 3. The layer's
# running statistics, with a momentum of 1, are the statistics it used.

import matplotlib.pyplot as plt
import torch
import torch.distributed as dist

import sbnref

G = 4
MEANS = torch.tensor([0.0, 1.0, 3.0])


def statistics(empty, stats_mode):
    """Runs on every rank: what the layer normalized by when the last ranks were empty."""
    rank = dist.get_rank()
    torch.manual_seed(rank)
    n = 0 if rank >= G - empty else 4096
    layer = sbnref.SyncBatchNorm(3, stats_mode=stats_mode, momentum=1.0)
    layer(torch.randn(n, 3) + MEANS)
    return layer.running_mean, layer.running_var


empties = list(range(G))
with sbnref.Ranks(G) as ranks:
    measured = {
        mode: [ranks.run(statistics, empty, mode)[0] for empty in empties]
        for mode in ("default", "N", "exact")
    }

# %%
# The prediction drawn over the measurement:

share = torch.linspace(0, 0.75, 50)[:, None]  # e / G
predicted_mean = (1 - share) * MEANS
predicted_var = (1 - share) * (1 + share**2 * MEANS**2)

figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
colors = ("#00798c", "#edae49", "#d1495b")
for channel, color in enumerate(colors):
    for which, (ax, predicted) in enumerate(
        zip(axes, (predicted_mean, predicted_var), strict=True)
    ):
        ax.plot(
            share * G,
            predicted[:, channel],
            color=color,
            label=f"true mean {MEANS[channel]:.0f}",
        )
        ax.plot(
            empties, [m[which][channel] for m in measured["default"]], "o", color=color
        )
        ax.plot(
            empties, [m[which][channel] for m in measured["exact"]], "x", color=color
        )
axes[0].set(
    ylim=(-0.2, 3.9), title="mean", xlabel=f"empty ranks, of {G}", xticks=empties
)
axes[1].set(
    title="variance (the true one is 1)", xlabel=f"empty ranks, of {G}", xticks=empties
)
axes[0].legend(frameon=False, fontsize=8)
figure.suptitle(
    "line: predicted for 'default'; o: 'default', measured; x: 'exact', measured"
)
plt.show()

# %%
# The line goes through the points: this is not noise but arithmetic. The mean shrinks
# by the share of empty ranks. The variance of a channel with mean 0 shrinks by the same
# share; that of a channel with mean 3 *grows*, because deviations are taken from a mean
# that belongs to nobody. Modes ``'N'`` and ``'exact'`` are right with any number
# of empty ranks.

for mode, rows in measured.items():
    worst = max((mean - MEANS).abs().max().item() for mean, _ in rows)
    print(f"{mode:>8}: the mean is off by at most {worst:.2f}")

# %%
# What the next layer sees
# ------------------------
#
# The normalized values of the channel with mean 3 should have mean 0 and standard
# deviation 1, whatever the number of empty ranks.

figure, ax = plt.subplots(figsize=(7, 3))
x = torch.randn(4096) + 3
for empty, (mean, var) in enumerate(measured["default"]):
    ax.hist((x - mean[2]) / var[2].sqrt(), bins=60, alpha=0.6, label=f"{empty} empty")
ax.set(
    title="the same data, normalized by 'default'", xlabel="normalized value", yticks=[]
)
ax.legend(frameon=False)
plt.show()

# %%
# As ranks come and go, the same input jumps. The next layer has to be right for all of
# them, and eval mode, which uses an average of these statistics, is right for none.
#
# On real data
# ------------
#
# The demonstration trains a network on scikit-learn's handwritten digits, on four ranks
# that keep only the classes they look for (``sbnref demo``; here with fewer steps).
# Each point is a step and a layer's average: its measured error of the mean, beside
# what the formula says for its number of empty ranks if all ranks with data had the
# same statistics.

from sbnref import demo

STEPS = 40
with sbnref.Ranks(4) as ranks:
    results = {
        mode: ranks.run(demo.train, mode, STEPS, 0)[0] for mode in ("default", "exact")
    }

figure, ax = plt.subplots(figsize=(7, 3.2))
for mode, color in (("default", "#d1495b"), ("exact", "#00798c")):
    r = results[mode]
    jitter = torch.rand(STEPS) * 0.2 - 0.1
    ax.plot(
        torch.tensor(r["empty_ranks"]) + jitter,
        r["mean_errors"],
        "o",
        color=color,
        alpha=0.5,
        label=mode,
    )
ax.plot(
    [0, 1, 2, 3], [0, 0.25, 0.5, 0.75], "_k", markersize=24, label="predicted, e / G"
)
ax.set(
    title="relative error of the mean, real digits",
    xlabel="empty ranks in the step",
    xticks=[0, 1, 2, 3],
)
ax.legend(frameon=False)
plt.show()

empty_share = sum(count > 0 for count in results["exact"]["empty_ranks"]) / STEPS
print(f"{empty_share:.0%} of the steps had an empty rank")
for mode, r in results.items():
    print(
        f"{mode:>8}: error of the running mean after {STEPS} steps {r['running_mean_error']:.1%}"
    )

# %%
# The measured points scatter about the prediction because the ranks that have data hold
# different classes: even without an empty rank ``'default'`` weighs a rank with one
# digit like a rank with eight. The running mean is held to that of all samples seen,
# through the last step's weights. It lags behind them in both modes; what ``'default'``
# has on top is the skew.
#
# Exercises
# ---------
#
# 1. At which mean does the variance of ``'default'`` with one of four empty ranks come
#    out right by accident? Solve, then check with the layer.
# 2. Make the ranks ragged instead of empty: 1, 2, 4 and 8 samples. Which mode is off,
#    and by how much?
# 3. Let the spatial sizes differ, 4×4 on one rank and 32×32 on the other. Show that
#    ``'N'`` is off now, and predict it.
# 4. How would you repair ``'default'`` without changing the weights? (What would
#    :math:`D` have to be?)
