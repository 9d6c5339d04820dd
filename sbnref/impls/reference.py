"""The layer in plain PyTorch, to read from top to bottom.

Four stages, two on each side of a collective:

    forward_stats  -> all-reduce -> forward_apply         backward_stats -> all-reduce -> backward_apply

Shapes: N samples, C channels, ``*`` any number of spatial dimensions. Sums run over everything but the channels.
Arithmetic on elements is in ``acc``, float32 or float64. Numbers per channel are float64, because they are few.
Numbers per channel are stacked before they are used on elements: compiled code stores a stack, and would compute
separate tensors again for every element.
"""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from ..modes import combine, payload_dtype
from ..running import RunningStats, update_running_stats


def forward_stats(
    x: Tensor,  # (N, C, *)
    weight: int,  # w, the weight of this rank
) -> Tensor:  # (3C + 2,) [w mean, w var, w mean^2, w, m]
    """Return the payload of this rank: the statistics of its batch, weighted."""
    wide = payload_dtype(x.device)
    m = x.numel() // x.shape[1]
    x = samples(x.to(accumulator(x)))
    n, _, s = x.shape

    # Sample by sample, since a sample fits in the cache: compiled code reads x from memory once. Within a sample, a
    # corrected two-pass algorithm: deviations from a rounded mean, then a correction for its rounding.
    center = x.sum(2) / max(s, 1)  # (N, C)
    deviation = x - center[..., None]  # (N, C, S)
    correction = deviation.sum(2).to(wide) / max(s, 1)
    means = center + correction
    variances = deviation.pow_(2).sum(2).to(wide) / max(s, 1) - correction * correction

    # Samples have equal weights, and the spread of their means adds to the variance. Ranks are combined alike.
    mean = means.sum(0) / max(n, 1)  # (C,)
    var = (variances + (means - mean) ** 2).sum(0) / max(n, 1)

    tail = mean.new_full((1,), weight), mean.new_full((1,), m)
    return torch.cat([weight * mean, weight * var, weight * mean * mean, *tail])


def forward_apply(
    x: Tensor,  # (N, C, *)
    total: Tensor,  # (3C + 2,) the payloads of all ranks, summed
    divisor: int | None,  # D, or None for the sum of the weights
    gamma: Tensor | None,  # (C,)
    beta: Tensor | None,  # (C,)
    eps: float,
    running: RunningStats | None,  # updated in place
    momentum: float | None,
) -> tuple[Tensor, Tensor]:  # y (N, C, *) and saved (4, C), for the backward pass
    """Normalize by the statistics of all ranks, and update the running ones."""
    stats = combine(total, divisor)
    invstd = torch.rsqrt(stats.var + eps)  # (C,) 1 / sigma
    if running is not None:
        update_running_stats(running, stats, momentum)

    # y = gamma (x - mean) / sigma + beta, with the mean in two parts: x - hi is exact where x is near the mean.
    acc = accumulator(x)
    hi, lo = split(stats.mean, acc)
    scale = invstd if gamma is None else gamma * invstd
    shift = -lo * scale if beta is None else beta - lo * scale
    hi, factor, shift = torch.stack([t.to(acc) for t in (hi, scale, shift)])
    y = (x.to(acc) - over(x, hi)).mul_(over(x, factor)).add_(over(x, shift))

    # Zero unless W != D. That happens in 'default' with an empty rank, where the mean is not the data's mean.
    skew = stats.mean * invstd * (1 - stats.weight / stats.divisor)
    saved = torch.stack([stats.mean, invstd, skew, (1 / stats.divisor).expand_as(skew)])
    return y.to(x.dtype), saved


def backward_stats(
    dy: Tensor,  # (N, C, *)
    x: Tensor,  # (N, C, *)
    saved: Tensor,  # (4, C)
) -> Tensor:  # (2C,) [sum g, sum g xhat]
    """Return the backward payload of this rank: two sums over its upstream gradient."""
    mean, invstd, _, inverse_divisor = saved
    acc = accumulator(x)
    hi, lo = split(mean, acc)
    # Both sums get a factor per channel, divided out below: they then have the same form, and compiled code computes
    # both while it reads dy once.
    g = dy.to(acc) * over(x, inverse_divisor.to(acc))
    sum_g = sum_of(g) / inverse_divisor
    sum_g_deviation = sum_of(g.mul_(x.to(acc) - over(x, hi))) / inverse_divisor
    return torch.cat([sum_g, (sum_g_deviation - lo * sum_g) * invstd])  # xhat = (x - hi - lo) / sigma


def backward_apply(
    dy: Tensor,  # (N, C, *)
    x: Tensor,  # (N, C, *)
    total: Tensor,  # (2C,) the payloads of all ranks, summed: A = sum g and B = sum g xhat
    saved: Tensor,  # (4, C)
    gamma: Tensor | None,  # (C,)
    k: float,  # w / m, 0 on an empty rank; k / D is the weight of one element in the mean
) -> Tensor:  # dx (N, C, *)
    """Return the gradient of the loss, summed over all ranks, with respect to this rank's input."""
    mean, invstd, skew, inverse_divisor = saved
    a, b = total.chunk(2)
    acc = accumulator(x)
    hi, lo = split(mean, acc)

    # dx = gamma / sigma { g - k/D [A + xhat B - skew B] }, collected as dx = scale g + slope (x - hi) + offset.
    scale = invstd if gamma is None else gamma * invstd
    element = scale * k * inverse_divisor
    slope = -element * b * invstd
    offset = -element * (a - (lo * invstd + skew) * b)
    hi, scale, slope, offset = torch.stack([t.to(acc) for t in (hi, scale, slope, offset)])
    dx = (dy.to(acc) * over(x, scale)).addcmul_(x.to(acc) - over(x, hi), over(x, slope))
    return dx.add_(over(x, offset)).to(x.dtype)


def accumulator(x: Tensor) -> torch.dtype:
    """Return float64 for float64 inputs, float32 for narrower ones."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def samples(x: Tensor) -> Tensor:  # (N, C, *) -> (N, C, S), or (1, C, N) where S would be 1
    """Put the elements of each sample in a row; a batch of vectors, (N, C), becomes one sample of N elements."""
    x = x.reshape(*x.shape[:2], prod(x.shape[2:]))
    return x.transpose(0, 2) if x.shape[2] == 1 else x


def sum_of(x: Tensor) -> Tensor:  # (N, C, *) -> (C,)
    """Sum over everything but the channels, one sample at a time."""
    return samples(x).sum(2).sum(0)


def over(x: Tensor, per_channel: Tensor) -> Tensor:  # (C,) -> (1, C, 1, ..., 1)
    """Reshape one number per channel to broadcast over x."""
    return per_channel.view([-1 if d == 1 else 1 for d in range(x.dim())])


def split(mean: Tensor, acc: torch.dtype) -> tuple[Tensor, Tensor]:
    """Split the mean into hi + lo, (C,) each: hi is rounded to ``acc``, lo is the remainder."""
    hi = mean.to(acc)
    return hi, mean - hi
