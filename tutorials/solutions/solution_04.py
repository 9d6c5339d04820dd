"""Solutions to tutorial 4, deriving and testing the backward pass."""

import torch
import torch.distributed as dist

import sbnref

EPS = 1e-5

# 1. In 'exact', w_r = m_r and D = M. With x_i on rank r,
# dv/dx_i = 2 (x_i - mu) / M - 2 / M sum_j (x_j - mu) / M,
# and the sum of deviations from the mean is zero.
x = torch.randn(20, dtype=torch.float64, requires_grad=True)
(dv,) = torch.autograd.grad(x.var(correction=0), x)
torch.testing.assert_close(dv, 2 * (x - x.mean()).detach() / 20)
print("1. dv/dx_i = 2 (x_i - mu) / M")


# 2. Mode 'N' with two elements per sample: w_r = n_r = m_r / 2 and D = sum n_r, so
# k_r = n_r / (D m_r) = 1 / (2 D).
def forward(xs):
    """Normalize each rank's elements, (m_r,), by 'N'."""
    full = [x for x in xs if len(x) > 0]
    ns = [len(x) / 2 for x in full]
    d = sum(ns)
    mean = sum(n * x.mean() for n, x in zip(ns, full, strict=True)) / d
    var = (
        sum(
            n * (x.var(correction=0) + (x.mean() - mean) ** 2)
            for n, x in zip(ns, full, strict=True)
        )
        / d
    )
    sigma = (var + EPS).sqrt()
    return [(x - mean) / sigma for x in xs], (sigma, d)


def backward(gs, xs, missing_mean_term=False):
    """Return the gradient by the formula; W = D, so there is no last term."""
    xhats, (sigma, d) = forward(xs)
    a = 0 if missing_mean_term else sum(g.sum() for g in gs)
    b = sum((g * xhat).sum() for g, xhat in zip(gs, xhats, strict=True))
    return [
        (g - (a + xhat * b) / (2 * d)) / sigma
        for g, xhat in zip(gs, xhats, strict=True)
    ]


def by_autograd(xs, gs):
    """Return the gradient by autograd."""
    leaves = [x.clone().requires_grad_() for x in xs]
    loss = sum((y * g).sum() for y, g in zip(forward(leaves)[0], gs, strict=True))
    return torch.autograd.grad(loss, leaves)


torch.manual_seed(0)
xs = [torch.randn(n, dtype=torch.float64) for n in (6, 0, 2, 4)]
gs = [torch.randn(len(x), dtype=torch.float64) for x in xs]
torch.testing.assert_close(backward(gs, xs), list(by_autograd(xs, gs)))
print("2. mode 'N' passes")

# 3. The last term is k B mu (1 - W/D) / sigma. It vanishes if mu = 0, or if B = 0, when
# the gradient is uncorrelated with the normalized input. Data with mean zero hides it.
print("3. data whose mean is zero")


# 4. Without the term A the gradients no longer sum to zero. All three tests look at dx
# and notice, unless A is zero. The first two tests do not notice another EPS, because
# forward and backward share it. The layer has its own EPS.
def by_differences(xs, gs, step=1e-6):
    """Return the gradient by finite differences."""
    grads = [torch.zeros_like(x) for x in xs]
    for grad, x in zip(grads, xs, strict=True):
        for i in range(len(x)):
            losses = []
            for moved in (step, -step):
                x[i] += moved
                pairs = zip(forward(xs)[0], gs, strict=True)
                losses.append(sum((y * g).sum() for y, g in pairs))
                x[i] -= moved
            grad[i] = (losses[0] - losses[1]) / (2 * step)
    return grads


def of_the_layer(xs, gs):
    """Return the layer's gradient, two elements to a sample (runs on every rank)."""
    x, g = (ts[dist.get_rank()].view(-1, 1, 2) for ts in (xs, gs))
    x = x.requires_grad_()
    sbnref.SyncBatchNorm(1, affine=False, stats_mode="N")(x).backward(g)
    return x.grad.flatten()


layer = sbnref.launch(of_the_layer, 4, xs, gs)


def noticed(**broken):
    """Return whether each of the three tests notices."""
    tests = [by_autograd(xs, gs), by_differences(xs, gs), layer]
    got = torch.cat(backward(gs, xs, **broken))
    return [not torch.allclose(got, torch.cat(list(t)), rtol=1e-6) for t in tests]


assert noticed() == [False, False, False]
print("4. without A, noticed:", noticed(missing_mean_term=True))
assert noticed(missing_mean_term=True) == [True, True, True]
EPS = 1e-1
print("4. with another EPS, noticed:", noticed())
assert noticed() == [False, False, True]
