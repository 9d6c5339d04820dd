"""A statistics mode is a weight per rank and a divisor, and nothing else.

Rank *r* of *G* holds :math:`m_r` elements per channel in a batch of :math:`n_r` samples, with local mean
:math:`\\mu_r` and local biased variance :math:`v_r`. Every mode combines them as

.. math::
    \\mu = \\frac{1}{D} \\sum_r w_r \\mu_r, \\qquad
    v = \\frac{1}{D} \\sum_r w_r \\left( v_r + (\\mu_r - \\mu)^2 \\right)

and differs from the others only in :math:`w_r` and :math:`D`. Each rank sends one vector of :math:`2C + 2` numbers,
:math:`[w \\mu,\\; w (v + \\mu^2),\\; w,\\; m]`; the sum of these vectors over the ranks, the *total*, holds all there
is to know. This module is the arithmetic between the vectors: what a rank weighs, and what a total means.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

#: What ``stats_mode`` may be.
STATS_MODES = ("default", "N", "exact")


def rank_weight(stats_mode: str, batch_size: int, count: int) -> int:
    """The weight :math:`w_r` of this rank.

    Args:
        stats_mode: one of :data:`STATS_MODES`.
        batch_size: samples on this rank, :math:`n_r`.
        count: elements per channel on this rank, :math:`m_r = n_r \\cdot H_r \\cdot W_r`; 0 on an empty rank.
    """
    if stats_mode == "default":  # every rank that has data weighs the same
        return min(count, 1)
    if stats_mode == "N":  # a rank weighs as many samples as it has
        return batch_size * min(count, 1)
    return count  # 'exact': a rank weighs as many elements as it has


def fixed_divisor(stats_mode: str, world_size: int) -> int | None:
    """The divisor :math:`D` where it is a constant: the world size in ``'default'``, else None.

    None stands for the sum of the weights (at least 1), which is known only once the total is there.
    """
    return world_size if stats_mode == "default" else None


def payload_dtype(device: torch.device) -> torch.dtype:
    """The type in which statistics travel: float64, or float32 where the device has nothing wider.

    The variance is recovered by a subtraction that cancels when ``|mean| >> std``: float64 leaves a relative error
    of :math:`10^{-16} (\\mu / \\sigma)^2`, float32 one of :math:`10^{-7} (\\mu / \\sigma)^2`.
    """
    return torch.float32 if device.type == "mps" else torch.float64


class Statistics(NamedTuple):
    """What a total says. Every field lies on the total's device and has its dtype."""

    mean: Tensor  #: (C,)
    var: Tensor  #: (C,) biased
    divisor: Tensor  #: () D
    weight: Tensor  #: () W, the sum of the weights
    elements: Tensor  #: () M, the number of elements per channel on all ranks together


def combine(total: Tensor, divisor: int | None) -> Statistics:
    """Read mean and variance off the summed payloads.

    With :math:`S_1 = \\sum w_r \\mu_r` and :math:`S_2 = \\sum w_r (v_r + \\mu_r^2)`, expanding the square in the
    definition of the variance gives :math:`v = (S_2 - 2 \\mu S_1 + \\mu^2 W) / D`.

    Args:
        total: (2C + 2,), the sum over the ranks of :math:`[w \\mu, w (v + \\mu^2), w, m]`.
        divisor: what :func:`fixed_divisor` gave.
    """
    channels = (total.numel() - 2) // 2
    s1, s2, weight, elements = total[:channels], total[channels:-2], total[-2], total[-1]
    d = weight.clamp(min=1) if divisor is None else torch.full_like(weight, divisor)
    mean = s1 / d
    var = (s2 - 2 * mean * s1 + mean * mean * weight) / d
    return Statistics(mean, var.clamp(min=0), d, weight, elements)
