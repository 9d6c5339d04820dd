r"""
3. When a rank is empty
=======================

Predict the error that an empty rank causes in mode ``'default'``, and measure it.
**Time:** about 20 minutes, and 45 for the exercises. **You need:** tutorials 1 and 2.

**Question.** A detection head sees a varying number of boxes, and in some steps a
process has no box at all. How does ``stats_mode='default'`` treat this empty rank, and
how large is the error?

Mode ``'default'`` comes from mmcv. It adds up the means and variances of the ranks and
divides by the number of ranks, empty ranks included. If :math:`e` of :math:`G` ranks
are empty, then (:doc:`/derivations/modes`)

.. math::
    \mu_{\text{default}} &= \left(1 - \frac eG\right) \bar\mu, \\
    v_{\text{default}} &= \left(1 - \frac eG\right)
    \left( \bar v + \frac{e^2}{G^2} \bar\mu^2 \right).

Here :math:`\bar\mu` and :math:`\bar v` are the statistics of the ranks that have data.
"""

# %%
# A controlled example
# --------------------
#
# Up to three of four ranks are empty. The other ranks draw from one distribution: three
# channels with standard deviation 1 and means 0, 1 and 3. With a momentum of 1, the
# running statistics of the layer are the statistics that the layer has just used.

import matplotlib.pyplot as plt
import torch
import torch.distributed as dist

import sbnref

G = 4
MEANS = torch.tensor([0.0, 1.0, 3.0])


def statistics(empty, stats_mode):
    """Return the statistics if the last ranks are empty (runs on every rank)."""
    rank = dist.get_rank()
    torch.manual_seed(rank)
    n = 0 if rank >= G - empty else 4096
    layer = sbnref.SyncBatchNorm(3, stats_mode=stats_mode, momentum=1.0)
    layer(torch.randn(n, 3) + MEANS)
    return torch.stack([layer.running_mean, layer.running_var])


empties = range(G)
with sbnref.Ranks(G) as ranks:
    measured = {  # mode: (empty ranks, mean and variance, channels)
        mode: torch.stack([ranks.run(statistics, e, mode)[0] for e in empties])
        for mode in ("default", "N", "exact")
    }

# %%
# Lines are predictions, markers are measurements. The modes have the colours of the
# :doc:`explorer </explorer>`.

COLORS = {"default": "#b3410e", "N": "#7a3fa8", "exact": "#0b6e5b"}

share = torch.linspace(0, 0.75, 50)[:, None]  # e / G
predicted = ((1 - share) * MEANS, (1 - share) * (1 + share**2 * MEANS**2))

figure, axes = plt.subplots(1, 2, figsize=(9, 3.4))
for i, (ax, name) in enumerate(zip(axes, ("mean", "variance"), strict=True)):
    for mode, marker in (("default", "o"), ("exact", "x")):
        ax.plot(empties, measured[mode][:, i], marker, color=COLORS[mode])
        ax.plot([], [], marker, color=COLORS[mode], label=f"'{mode}', measured")
    ax.plot(share * G, predicted[i], color=COLORS["default"], linewidth=1)
    for mean, end in zip(MEANS, predicted[i][-1], strict=True):
        ax.annotate(f"  mean {mean:.0f}", (G - 1, end), fontsize=8, va="center")
    ax.set(xlabel=f"empty ranks, of {G}", ylabel=name, xticks=empties)
    ax.margins(x=0.15)
axes[1].legend(fontsize=8)
figure.suptitle("Each empty rank skews the statistics of 'default', as predicted")
plt.show()

# %%
# The lines go through the markers, so the error is arithmetic and not noise. The mean
# shrinks by the share of empty ranks. The variance of a channel with mean 0 shrinks by
# this share, too. The variance of a channel with mean 3 *grows*, because the deviations
# are taken from a mean that is wrong for every rank. Modes ``'N'`` and ``'exact'`` are
# right with any number of empty ranks.

for mode, rows in measured.items():
    worst = (rows[:, 0] - MEANS).abs().max()
    print(f"{mode:>8}: the mean is off by at most {worst:.2f}")

# %%
# The input of the next layer
# ---------------------------
#
# The normalized values of the channel with mean 3 should have mean 0 and standard
# deviation 1, with any number of empty ranks.

figure, ax = plt.subplots(figsize=(7, 3))
x = torch.randn(4096) + 3
for empty, (mean, var) in enumerate(measured["default"][..., 2]):
    ax.hist((x - mean) / var.sqrt(), bins=60, alpha=0.6, label=f"{empty} empty")
ax.set(xlabel="value after mode 'default'", yticks=[])
ax.set_title("Empty ranks shift the normalized values of unchanged data")
ax.legend()
plt.show()

# %% As the number of empty ranks changes, the output for one and the same input jumps.
# The next layer has to work with all of these outputs. Eval mode uses an average of the
# statistics, which matches none of them.
#
# Real data
# ---------
#
# The demonstration (``sbnref demo``) trains a network on scikit-learn's handwritten
# digits. Four ranks keep only the classes that they look for. Here it runs with fewer
# steps. Each dot is a step, averaged over the layers: the measured error of the mean.
# The bars show the prediction of the formula, which assumes that all ranks with data
# have equal statistics.

from sbnref import demo

STEPS = 40
with sbnref.Ranks(4) as ranks:
    results = {
        mode: ranks.run(demo.train, mode, STEPS, 0)[0] for mode in ("default", "exact")
    }

figure, ax = plt.subplots(figsize=(7, 3.2))
for mode, r in results.items():
    where = torch.tensor(r["empty_ranks"]) + torch.rand(STEPS) * 0.2 - 0.1
    ax.plot(where, r["mean_errors"], "o", color=COLORS[mode], alpha=0.5, label=mode)
ax.plot(range(4), [0, 0.25, 0.5, 0.75], "_k", markersize=24, label="predicted, e / G")
ax.set(xlabel="empty ranks in the step", ylabel="relative error of the mean")
ax.set_title("On real digits the error of 'default' follows the prediction")
ax.set_xticks(range(4))
ax.legend()
plt.show()

empty_share = sum(count > 0 for count in results["exact"]["empty_ranks"]) / STEPS
print(f"{empty_share:.0%} of the steps had an empty rank")
for mode, r in results.items():
    error = r["running_mean_error"]
    print(f"{mode:>8}: error of the running mean after {STEPS} steps {error:.1%}")

# %%
# The dots scatter around the prediction because the ranks with data hold different
# classes. Even without an empty rank, ``'default'`` gives a rank with one digit the
# weight of a rank with eight. The last two lines compare the running mean with the mean
# of all samples seen, computed with the weights of the last step. The running mean lags
# behind in both modes; the skew of ``'default'`` comes on top.
#
# Exercises
# ---------
#
# 1. At one particular mean, the variance of ``'default'`` with one of four empty ranks
#    is right by accident. Solve for this mean, then check it with the layer.
# 2. Make the ranks ragged instead of empty: 1, 2, 4 and 8 samples. Which mode is off,
#    and by how much?
# 3. Use different spatial sizes: 4×4 on one rank and 32×32 on the other. Show that
#    ``'N'`` is off now, and predict by how much.
# 4. How would you repair ``'default'`` without changing the weights? (Which value would
#    :math:`D` need?)
