"""
6. Find the bug
===============

**Question.** Training diverges on eight GPUs and not on one. Somebody rewrote the
batch norm. Where is the bug?

Two implementations of the same four stages are a debugger: give both the same input
and the same upstream gradient, and look for the first stage at which they part.
:func:`sbnref.compare` does that, beside what rounding allows.
"""

# %%
# A broken implementation
# -----------------------
#
# This one passes a casual test: its outputs are right, and with equal batches so are
# its gradients. It differs from the reference in one stage. Do not read it yet.

from types import SimpleNamespace

import torch
from torch import nn

import sbnref
from sbnref.impls import reference


def backward_apply(dy, x, total, saved, gamma, k):
    """As mmcv's: the divisor in every mode is the number of ranks times m."""
    world_size = torch.distributed.get_world_size()
    saved = saved.clone()
    saved[3] = 1 / world_size
    return reference.backward_apply(dy, x, total, saved, gamma, 1 / max(len(x), 1))


def broken(**stages):
    """The reference with some stages replaced."""
    names = ("forward_stats", "forward_apply", "backward_stats", "backward_apply")
    return SimpleNamespace(**{n: stages.get(n, getattr(reference, n)) for n in names})


# %%
# Equal batches see nothing
# -------------------------
#
# On two ranks with four samples each, in mode ``'N'``:


def compare_on(sizes):
    """Runs on every rank: the report of a comparison over these batch sizes."""
    sbnref.register_impl(f"suspect-{sizes}", broken(backward_apply=backward_apply))
    rank = torch.distributed.get_rank()
    torch.manual_seed(rank)
    model = nn.Sequential(
        nn.Linear(6, 8), sbnref.SyncBatchNorm(8, stats_mode="N"), nn.ReLU()
    )
    x = torch.randn(sizes[rank], 6)
    return sbnref.compare(model, x, impls=("reference", f"suspect-{sizes}")).to_dict()


def verdict(report):
    """What a report says in short."""
    if report["agrees"]:
        return "the two agree"
    first = report["first_divergence"]
    return (
        f"they part at {first['stage']}, in {first['quantity']}:\n"
        f"{first['absolute']:.1e} apart where rounding allows {first['allowed']:.1e}, "
        f"channel {first['channel']}, rank {first['rank']}"
    )


with sbnref.Ranks(2) as ranks:
    print("4 and 4 samples:", verdict(ranks.run(compare_on, (4, 4))[0]))
    print("6 and 2 samples:", verdict(ranks.run(compare_on, (6, 2))[0]))

# %%
# Unequal batches point at the stage: everything up to ``backward_apply`` agrees, its
# ``dx`` does not. Now read the function above. An element of rank :math:`r` weighs
# :math:`w_r / (D m_r)` in the mean (:doc:`/derivations/backward`). In mode ``'N'`` that
# is :math:`n_r / (m_r \sum_q n_q)`; the function takes :math:`1 / (G m_r)`, which is the
# same only if all :math:`n_r` are.
#
# A bug that hides in precision
# -----------------------------
#
# The next one is right in float32. What about half precision? The whole report, for one
# process:


def forward_stats(x, weight):
    """Sums in the input's own precision."""
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
# The first row that is off is ``forward_stats``, and the report says which of the two
# is further from float64. In float32 the two agree:

report = sbnref.compare(layer, torch.randn(8, 4, 16, 16), impls=("reference", "narrow"))
print("float32:", verdict(report.to_dict()))

# %%
# A bug that is not there every time
# ----------------------------------
#
# A race gives another result in another run. The comparison runs each stage twice and
# reports a stage that does not repeat itself.


def racy(dy, x, saved):
    """Now and then a contribution is lost."""
    payload = reference.backward_stats(dy, x, saved)
    return payload * (1 - 0.01 * torch.rand_like(payload))


sbnref.register_impl("racy", broken(backward_stats=racy))
report = sbnref.compare(layer, torch.randn(8, 4, 16, 16), impls=("reference", "racy"))
print(verdict(report.to_dict()))
print(report.first_divergence.problems)

# %%
# From the command line
# ---------------------
#
# ``sbnref compare`` does the same for a model that a function of yours builds, on any
# number of ranks, with an exit code for continuous integration: :doc:`/howto/compare`.
# To compare the reference with the CUDA kernels on a machine without a GPU, set
# ``SBNREF_CUDASIM=1``.
#
# Exercises
# ---------
#
# 1. Write a ``forward_apply`` that forgets :math:`M/(M-1)` in the running variance.
#    (:doc:`/howto/implement` has its arguments; :func:`sbnref.modes.combine` reads mean
#    and variance off the total.) From which batch size on does the comparison not see it?
# 2. Write a ``backward_apply`` that drops the last term; the reference keeps
#    :math:`\mu/\sigma \cdot (1 - W/D)` in ``saved[2]``. Which batches, in which mode,
#    does the comparison need to find it?
# 3. Why does the comparison feed both implementations the *same* total, instead of
#    letting each compute its own? Break ``forward_stats`` and see which stages differ.
