"""
6. Find the bug
===============

Locate the faulty stage of a batch norm by comparing two implementations stage by stage.
**Time:** about 15 minutes, and 45 for the exercises. **You need:** tutorial 4.

**Question.** A training run diverges on eight GPUs but not on one, after a rewrite of
the batch norm. Where is the bug?

Two implementations of the four stages work as a debugger: give both of them equal
inputs and equal upstream gradients, and look for the first stage with different
results. :func:`sbnref.compare` does this and shows the difference that rounding allows.
"""

# %%
# A broken implementation
# -----------------------
#
# This implementation passes a casual test: its outputs are right, and with equal
# batches its gradients are right, too. It differs from the reference in one stage.
# Don't read it yet.

from types import SimpleNamespace

import torch
from torch import nn

import sbnref
from sbnref.impls import reference


def backward_apply(dy, x, total, saved, gamma, k):
    """Use mmcv's divisor: the number of ranks times m in every mode."""
    world_size = torch.distributed.get_world_size()
    saved = saved.clone()
    saved[3] = 1 / world_size
    return reference.backward_apply(dy, x, total, saved, gamma, 1 / max(len(x), 1))


def broken(**stages):
    """Return the reference with some stages replaced."""
    names = ("forward_stats", "forward_apply", "backward_stats", "backward_apply")
    return SimpleNamespace(**{n: stages.get(n, getattr(reference, n)) for n in names})


# %%
# Equal and unequal batches
# -------------------------
#
# Two ranks compare the implementations in mode ``'N'``, first on four samples each and
# then on six and two samples:


def compare_on(sizes):
    """Return a comparison on these batch sizes (runs on every rank)."""
    sbnref.register_impl(f"suspect-{sizes}", broken(backward_apply=backward_apply))
    rank = torch.distributed.get_rank()
    torch.manual_seed(rank)
    model = nn.Sequential(
        nn.Linear(6, 8), sbnref.SyncBatchNorm(8, stats_mode="N"), nn.ReLU()
    )
    x = torch.randn(sizes[rank], 6)
    return sbnref.compare(model, x, impls=("reference", f"suspect-{sizes}")).to_dict()


def verdict(report):
    """Summarize a report."""
    if report["agrees"]:
        return "the two agree"
    first = report["first_divergence"]
    return (
        f"they differ first at {first['stage']}, in {first['quantity']}:\n"
        f"off by {first['absolute']:.1e}, rounding allows {first['allowed']:.1e}, "
        f"channel {first['channel']}, rank {first['rank']}"
    )


with sbnref.Ranks(2) as ranks:
    equal, unequal = (ranks.run(compare_on, sizes)[0] for sizes in ((4, 4), (6, 2)))
print("4 and 4 samples:", verdict(equal))
print("6 and 2 samples:", verdict(unequal))

# %%
# The figure has a bar for each quantity that a stage computes, on the worst rank.
# Beyond the gray line, the difference is larger than rounding allows.

import matplotlib.pyplot as plt

worst = {}
for row in unequal["rows"]:
    name = f"{row['stage']}: {row['quantity']}"
    worst[name] = max(row["ratio"], worst.get(name, 1e-3))  # a log axis has no zero

figure, ax = plt.subplots(figsize=(7.5, 3.2))
ax.barh(list(worst), list(worst.values()))
ax.axvline(1, color="gray", linewidth=0.8)
ax.set(xscale="log", xlabel="difference / difference that rounding allows")
ax.set_title("Only dx of backward_apply is wrong")
ax.invert_yaxis()
plt.show()

# %%
# With unequal batches the comparison finds the stage: all stages before
# ``backward_apply`` agree, but its ``dx`` differs. Now read the function above. An
# element of rank :math:`r` has the weight :math:`w_r / (D m_r)` in the mean
# (:doc:`/derivations/backward`). In mode ``'N'`` this weight is
# :math:`n_r / (m_r \sum_q n_q)`. The function uses :math:`1 / (G m_r)`, which is equal
# only if all :math:`n_r` are equal.
#
# A bug that hides in precision
# -----------------------------
#
# The next implementation is right in float32 but not in half precision. This is the
# whole report, for one process:


def forward_stats(x, weight):
    """Compute the sums in the input's own precision."""
    m = max(x.numel() // x.shape[1], 1)
    mean = reference.sum_of(x) / m
    d = x - reference.over(x, mean)
    var = (reference.sum_of(d * d) / m).double()
    mean = mean.double()
    tail = mean.new_tensor([weight, m])
    return torch.cat([weight * mean, weight * var, weight * mean * mean, tail])


sbnref.register_impl("narrow", broken(forward_stats=forward_stats))
torch.manual_seed(0)
layer = sbnref.SyncBatchNorm(4)
report = sbnref.compare(
    layer, torch.randn(8, 4, 16, 16).bfloat16(), impls=("reference", "narrow")
)
report

# %%
# The first row that is off is ``forward_stats``. The report also says which of the two
# implementations is further from float64. In float32 the two agree:

report = sbnref.compare(layer, torch.randn(8, 4, 16, 16), impls=("reference", "narrow"))
print("float32:", verdict(report.to_dict()))

# %%
# A bug that comes and goes
# -------------------------
#
# A race can give different results in different runs. The comparison runs each stage
# twice and reports a stage that does not reproduce its result.


def racy(dy, x, saved):
    """Lose a contribution now and then."""
    payload = reference.backward_stats(dy, x, saved)
    return payload * (1 - 0.01 * torch.rand_like(payload))


sbnref.register_impl("racy", broken(backward_stats=racy))
report = sbnref.compare(layer, torch.randn(8, 4, 16, 16), impls=("reference", "racy"))
print(verdict(report.to_dict()))
print(report.first_divergence.problems)

# %%
# The command line
# ----------------
#
# ``sbnref compare`` runs this comparison for a model that your own function builds, on
# any number of ranks, and sets an exit code for continuous integration:
# :doc:`/howto/compare`. To compare the reference with the CUDA kernels on a machine
# without a GPU, set ``SBNREF_CUDASIM=1``.
#
# Exercises
# ---------
#
# 1. Write a ``forward_apply`` that forgets :math:`M/(M-1)` in the running variance.
#    (:doc:`/howto/implement` lists its arguments; :func:`sbnref.modes.combine` computes
#    mean and variance from the total.) From which batch size on does the comparison
#    miss the error?
# 2. Write a ``backward_apply`` that drops the last term; the reference keeps
#    :math:`\mu/\sigma \cdot (1 - W/D)` in ``saved[2]``. Which batches, in which mode,
#    does the comparison need to find the error?
# 3. Why does the comparison give both implementations *one and the same* total, instead
#    of letting each compute its own? Break ``forward_stats`` and see which stages
#    differ.
