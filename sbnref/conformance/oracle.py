"""The oracle of every implementation: the definition itself, in float64, in one process, differentiated by autograd.

It shares nothing with the implementations. Statistics are two-pass sums over each rank's elements, combined by the
definition of the mode, without payload, collective or hand-written derivative.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Expected(NamedTuple):
    """The results of a training step of the layer, in float64. Lists have an entry for each rank."""

    y: list[Tensor]  # (N_r, C, *)
    dx: list[Tensor]  # (N_r, C, *)
    dgamma: Tensor  # (C,) averaged over the ranks
    dbeta: Tensor  # (C,) averaged over the ranks
    mean: Tensor  # (C,)
    var: Tensor  # (C,) biased
    unbiased_var: Tensor  # (C,)
    elements: int  # M


def train_step(
    xs: list[Tensor],  # (N_r, C, *) each rank's input
    dys: list[Tensor],  # (N_r, C, *) each rank's upstream gradient
    gamma: Tensor,  # (C,)
    beta: Tensor,  # (C,)
    stats_mode: str,
    eps: float = 1e-5,
) -> Expected:
    """Return the outputs and gradients of one step over all ranks."""
    xs = [x.detach().cpu().double().requires_grad_() for x in xs]
    gamma, beta = (p.detach().cpu().double().requires_grad_() for p in (gamma, beta))
    ys, mean, var = forward(xs, gamma, beta, stats_mode, eps)
    loss = torch.stack([(y * dy.detach().cpu().double()).sum() for y, dy in zip(ys, dys, strict=True)]).sum()
    *dxs, dgamma, dbeta = torch.autograd.grad(loss, [*xs, gamma, beta])
    elements = sum(elements_per_channel(x) for x in xs)
    y, mean, var = [y.detach() for y in ys], mean.detach(), var.detach()
    unbiased_var = var * elements / max(elements - 1, 1)
    return Expected(y, dxs, dgamma / len(xs), dbeta / len(xs), mean, var, unbiased_var, elements)


def forward(
    xs: list[Tensor], gamma: Tensor, beta: Tensor, stats_mode: str, eps: float
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Return each rank's output, the mean and the biased variance, by the table of modes."""
    full = [x for x in xs if x.numel() > 0]
    if stats_mode == "exact":
        weights, divisor = [elements_per_channel(x) for x in full], max(sum(map(elements_per_channel, full)), 1)
    elif stats_mode == "N":
        weights, divisor = [x.shape[0] for x in full], max(sum(x.shape[0] for x in full), 1)
    else:
        weights, divisor = [1 for _ in full], len(xs)
    means = [flat(x).mean(1) for x in full]
    variances = [flat(x).var(1, correction=0) for x in full]
    zero = 0 * gamma
    mean = sum((w * m for w, m in zip(weights, means, strict=True)), zero) / divisor
    parts = zip(weights, means, variances, strict=True)
    var = sum((w * (v + (m - mean) ** 2) for w, m, v in parts), zero) / divisor
    ys = [(x - over(x, mean)) / over(x, (var + eps).sqrt()) * over(x, gamma) + over(x, beta) for x in xs]
    return ys, mean, var


def elements_per_channel(x: Tensor) -> int:
    """Return m, the number of elements in one channel of x, (N, C, *)."""
    return x.numel() // x.shape[1]


def flat(x: Tensor) -> Tensor:
    """Reshape (N, C, *) to (C, N·*)."""
    return x.transpose(0, 1).reshape(x.shape[1], -1)


def over(x: Tensor, per_channel: Tensor) -> Tensor:
    """Reshape (C,) to broadcast over x, (N, C, *)."""
    return per_channel.reshape(1, -1, *[1] * (x.dim() - 2))
