r"""
4. Deriving and testing the backward pass
=========================================

Write the gradient of synchronized batch normalization in ten lines, and test it in
three ways. **Time:** about 20 minutes, and 60 for the exercises. **You need:** tutorial
3 and the chain rule.

**Question.** Every element of the output depends on every element of the input, also on
the elements on other machines. How do you compute the gradient, and how do you know
that your gradient is right?

:doc:`/derivations/backward` derives the result:

.. math::
    \frac{\partial L}{\partial x_i} = \frac\gamma\sigma \left\{ g_i - k_r \left[
    A + \hat x_i B - \frac B\sigma\, \mu \left(1 - \frac WD\right) \right] \right\},

where :math:`A = \sum_i g_i` and :math:`B = \sum_i g_i \hat x_i` are sums over **all**
ranks and :math:`k_r = w_r / (D\, m_r)`.
"""

# %%
# Plain Python
# ------------
#
# All ranks run in one process here: a list has one entry for each rank, and there is
# one channel. This is the forward pass in mode ``'default'``, and the formula:

import torch

EPS = 1e-5


def forward(xs):
    """Normalize each rank's elements, (m_r,), and return the formula's numbers, too."""
    full = [x for x in xs if len(x) > 0]
    d, w = len(xs), len(full)
    mean = sum(x.mean() for x in full) / d
    var = sum(x.var(correction=0) + (x.mean() - mean) ** 2 for x in full) / d
    sigma = (var + EPS).sqrt()
    return [(x - mean) / sigma for x in xs], (mean, sigma, d, w)


def backward(gs, xs, last_term=True):
    """Return the gradient of each rank's elements by the formula, with gamma = 1."""
    xhats, (mean, sigma, d, w) = forward(xs)
    a = sum(g.sum() for g in gs)
    b = sum((g * xhat).sum() for g, xhat in zip(gs, xhats, strict=True))
    skew = b / sigma * mean * (1 - w / d) if last_term else 0
    return [
        (g - (a + xhat * b - skew) / (d * max(len(g), 1))) / sigma
        for g, xhat in zip(gs, xhats, strict=True)
    ]


# %%
# First test: autograd
# --------------------
#
# Autograd differentiates the forward pass by itself. We take three ranks with data and
# one empty rank:

torch.manual_seed(0)
xs = [torch.randn(n, dtype=torch.float64) + 1 for n in (5, 0, 3, 4)]
gs = [torch.randn(len(x), dtype=torch.float64) for x in xs]


def loss(xs):
    """Return the loss, summed over the ranks."""
    return sum((y * g).sum() for y, g in zip(forward(xs)[0], gs, strict=True))


def error(got, want):
    """Return the largest difference relative to the largest value."""
    got, want = torch.cat(got), torch.cat(want)
    return ((got - want).abs().max() / want.abs().max()).item()


leaves = [x.clone().requires_grad_() for x in xs]
want = torch.autograd.grad(loss(leaves), leaves)
print(f"with the last term     {error(backward(gs, xs), want):.1e}")
print(f"without the last term  {error(backward(gs, xs, last_term=False), want):.1e}")

# %%
# Textbooks drop the last term, because it is zero unless :math:`W \ne D`. In
# ``'default'`` with an empty rank the last term is not zero. A backward pass without it
# is not the derivative of the forward pass.
#
# Second test: finite differences
# -------------------------------
#
# Autograd and the formula might share a misunderstanding. Finite differences use only
# the forward pass: move one element a little, and look at the change of the loss.

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
# Finite differences have an error of about :math:`\text{step}^2` plus the rounding
# error over the step. A closer agreement is not possible.
#
# Third test: the layer on real ranks
# -----------------------------------
#
# The first two tests compare ``backward`` with our own ``forward``. The layer of the
# package is independent code. Four real ranks compute its gradient:

import torch.distributed as dist

import sbnref


def gradient(xs, gs):
    """Return the layer's gradient of this rank's input (runs on every rank)."""
    rank = dist.get_rank()
    x = xs[rank][:, None].requires_grad_()
    layer = sbnref.SyncBatchNorm(1, affine=False, stats_mode="default")
    layer(x).backward(gs[rank][:, None])
    return x.grad[:, 0]


by_the_layer = sbnref.launch(gradient, 4, xs, gs)
print(f"the layer, four ranks  {error(backward(gs, xs), by_the_layer):.1e}")

# %%
# A backward pass that is not a derivative
# ----------------------------------------
#
# mmcv's layer uses :math:`k_r = 1/(G m_r)` in every mode. In mode ``'N'`` the right
# value is :math:`n_r / (m_r \sum_q n_q)`. So the more unequal the batches are, the
# further its gradient is from the derivative of its own forward pass. The figure
# compares mmcv's published algorithm (``sbnref/interop/peers.py``) and sbnref with the
# float64 oracle of the conformance suite.

import matplotlib.pyplot as plt


def off(sizes, peer):
    """Return the relative error of this rank's dx in mode 'N' (runs on every rank)."""
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
figure, ax = plt.subplots(figsize=(6.5, 3.2))
with sbnref.Ranks(2) as ranks:
    for name, peer in (("mmcv's algorithm", True), ("sbnref", False)):
        errors = [max(ranks.run(off, [2, 2 * ratio], peer)) for ratio in ratios]
        ax.plot(ratios, errors, "o-", label=name)
ax.set_xscale("log", base=2)
ax.set(xticks=ratios, xticklabels=ratios, ylabel="relative error, worst rank")
ax.set_xlabel("batch of the second rank over batch of the first rank")
ax.set_title("Unequal batches make mmcv's gradient wrong in mode 'N'")
ax.legend()
plt.show()

# %%
# Exercises
# ---------
#
# 1. Derive :math:`\partial v / \partial x_i` for mode ``'exact'`` from the definition
#    over all elements, and see the last term vanish.
# 2. Change ``forward`` and ``backward`` to mode ``'N'`` with two elements per sample,
#    and make the first two tests pass.
# 3. Find an input that does *not* reveal the missing last term, although a rank is
#    empty. (Look at the factors.)
# 4. Break ``backward`` in one place of your choice. Which of the three tests notice?
#    Then undo this and change ``EPS``. Which tests notice now, and why?
