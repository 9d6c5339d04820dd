r"""
4. Deriving and testing the backward pass
=========================================

**Question.** The output of every element depends on every other element, some of them
on other machines. What is the gradient, and how do you know that yours is right?

The derivation is in :doc:`/derivations/backward`. Its result:

.. math::
    \frac{\partial L}{\partial x_i} = \frac\gamma\sigma \left\{ g_i - k_r \left[ A + \hat x_i B
    - \frac B\sigma\, \mu \left(1 - \frac WD\right) \right] \right\},

where :math:`A = \sum_i g_i` and :math:`B = \sum_i g_i \hat x_i` are sums over **all**
ranks and :math:`k_r = w_r / (D\, m_r)`. Here we write it down in a few lines and test it
in three ways.
"""

# %%
# The plain Python
# ----------------
#
# All ranks in one process: a list with an entry for each rank, one channel. The forward
# pass, in mode ``'default'``:

import torch

EPS = 1e-5


def forward(xs):
    """Each rank's elements, (m_r,), normalized by 'default'; also what the formula needs."""
    full = [x for x in xs if len(x) > 0]
    d, w = len(xs), len(full)
    mean = sum(x.mean() for x in full) / d
    var = sum(x.var(correction=0) + (x.mean() - mean) ** 2 for x in full) / d
    sigma = (var + EPS).sqrt()
    return [(x - mean) / sigma for x in xs], (mean, sigma, d, w)


def backward(gs, xs, last_term=True):
    """The formula, with gamma = 1: the gradient of each rank's elements."""
    xhats, (mean, sigma, d, w) = forward(xs)
    a = sum(g.sum() for g in gs)
    b = sum((g * xhat).sum() for g, xhat in zip(gs, xhats, strict=True))
    skew = b / sigma * mean * (1 - w / d) if last_term else 0
    return [
        (g - (a + xhat * b - skew) / (d * max(len(g), 1))) / sigma
        for g, xhat in zip(gs, xhats, strict=True)
    ]


# %%
# The first test: autograd
# ------------------------
#
# Autograd differentiates the forward pass by itself. Three ranks with data, and one
# that is empty:

torch.manual_seed(0)
xs = [torch.randn(n, dtype=torch.float64) + 1 for n in (5, 0, 3, 4)]
gs = [torch.randn(len(x), dtype=torch.float64) for x in xs]


def by_autograd(xs, gs):
    """What the formula has to equal."""
    leaves = [x.clone().requires_grad_() for x in xs]
    ys, _ = forward(leaves)
    return torch.autograd.grad(
        sum((y * g).sum() for y, g in zip(ys, gs, strict=True)), leaves
    )


def error(got, want):
    """The largest difference relative to the largest value."""
    return (
        (torch.cat(got) - torch.cat(want)).abs().max() / torch.cat(want).abs().max()
    ).item()


want = by_autograd(xs, gs)
print(f"with the last term     {error(backward(gs, xs), want):.1e}")
print(f"without the last term  {error(backward(gs, xs, last_term=False), want):.1e}")

# %%
# The last term is what textbooks drop: it is zero unless :math:`W \ne D`. With an empty
# rank in ``'default'`` it is not, and a backward pass without it is not the derivative
# of the forward pass.
#
# The second test: finite differences
# -----------------------------------
#
# Autograd and the formula might share a misunderstanding. Finite differences know only
# the forward pass: move one element a little and see what the loss does.


def loss(xs):
    """The sum over ranks."""
    return sum((y * g).sum() for y, g in zip(forward(xs)[0], gs, strict=True))


step = 1e-6
moved = []
for rank, x in enumerate(xs):
    for i in range(len(x)):
        up, down = ([v.clone() for v in xs] for _ in range(2))
        up[rank][i] += step
        down[rank][i] -= step
        moved.append((loss(up) - loss(down)) / (2 * step))
print(f"finite differences     {error(backward(gs, xs), [torch.stack(moved)]):.1e}")

# %%
# Finite differences are right to about :math:`\text{step}^2` plus rounding over step,
# so this is as close as they come.
#
# The third test: the layer itself, across processes
# --------------------------------------------------
#
# The first two tests hold ``backward`` to our own ``forward``. The layer was written by
# somebody else: four real ranks, the gradient that each gets from it.

import torch.distributed as dist

import sbnref


def gradient(xs, gs):
    """Runs on every rank: the gradient of this rank's input."""
    rank = dist.get_rank()
    x = xs[rank][:, None].requires_grad_()
    layer = sbnref.SyncBatchNorm(1, affine=False, stats_mode="default")
    layer(x).backward(gs[rank][:, None])
    return x.grad[:, 0]


of_the_layer = sbnref.launch(gradient, 4, xs, gs)
print(f"the layer, four ranks  {error(backward(gs, xs), of_the_layer):.1e}")

# %%
# A backward pass that is not a derivative
# ----------------------------------------
#
# mmcv's layer uses :math:`k_r = 1/(G m_r)` in every mode. In mode ``'N'`` it should be
# :math:`n_r / (m_r \sum_q n_q)`. As the batches become unequal, its gradient drifts
# away from the derivative of its own forward pass. We measure by how much, with mmcv's
# published algorithm (``sbnref/interop/peers.py``) against the float64 oracle of the
# conformance suite.

import matplotlib.pyplot as plt


def off(sizes, peer):
    """Runs on every rank: the relative error of this rank's dx, mode 'N'."""
    from sbnref.conformance.cases.parts import random_inputs
    from sbnref.conformance.oracle import train_step
    from sbnref.interop.peers import MMCVSyncBatchNorm

    xs, dys = random_inputs(sizes, [(2, 2)] * len(sizes), torch.float64)
    want = train_step(xs, dys, torch.ones(5), torch.zeros(5), "N").dx[dist.get_rank()]
    Layer = MMCVSyncBatchNorm if peer else sbnref.SyncBatchNorm
    x = xs[dist.get_rank()].requires_grad_()
    Layer(5, stats_mode="N", dtype=torch.float64)(x).backward(dys[dist.get_rank()])
    return ((x.grad - want).norm() / want.norm()).item()


ratios = [1, 2, 4, 8, 16]
with sbnref.Ranks(2) as ranks:
    curves = {
        name: [max(ranks.run(off, [2, 2 * ratio], peer)) for ratio in ratios]
        for name, peer in (("mmcv's algorithm", True), ("sbnref", False))
    }

figure, ax = plt.subplots(figsize=(6.5, 3.2))
for name, values in curves.items():
    ax.plot(ratios, values, "o-", label=name)
ax.set_xscale("log", base=2)
ax.set(
    xlabel="how many times larger the second rank's batch is",
    title="relative error of the gradient in mode 'N', worst rank",
    xticks=ratios,
    xticklabels=ratios,
)
ax.legend(frameon=False)
plt.show()

# %%
# Exercises
# ---------
#
# 1. Derive :math:`\partial v / \partial x_i` for mode ``'exact'`` from the definition
#    over all elements, and see the last term vanish.
# 2. Change ``forward`` and ``backward`` to mode ``'N'`` with two elements per sample,
#    and make the first two tests pass.
# 3. Which input would *not* reveal the missing last term, although a rank is empty?
#    (Look at the factors.)
# 4. Break ``backward`` in one place of your choice. Which of the three tests notice? Then
#    leave it as it was and change ``EPS``: which notice now, and why?
