"""A statistics mode is a weight per rank and a divisor, and nothing else.

Rank *r* of *G* holds :math:`m_r` elements per channel in a batch of :math:`n_r` samples, with local mean
:math:`\\mu_r` and local biased variance :math:`v_r`. Every mode combines them as

.. math::
    \\mu = \\frac{1}{D} \\sum_r w_r \\mu_r, \\qquad
    v = \\frac{1}{D} \\sum_r w_r \\left( v_r + (\\mu_r - \\mu)^2 \\right)

and differs from the others only in :math:`w_r` and :math:`D`. Each rank sends one vector of :math:`3C + 2` numbers,
:math:`[w \\mu,\\; w v,\\; w \\mu^2,\\; w,\\; m]`. The sum of these vectors over the ranks, the *total*, determines
every statistic. This module computes the weight of a rank, and the statistics from a total.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

#: The values of ``stats_mode``.
STATS_MODES = ("default", "N", "exact")


def rank_weight(stats_mode: str, batch_size: int, count: int) -> int:
    """Return the weight :math:`w_r` of this rank.

    Args:
        stats_mode: one of :data:`STATS_MODES`.
        batch_size: samples on this rank, :math:`n_r`.
        count: elements per channel on this rank, :math:`m_r = n_r \\cdot H_r \\cdot W_r`; 0 on an empty rank.

    Raises:
        ValueError: ``stats_mode`` is not one of :data:`STATS_MODES`.
    """
    if stats_mode == "default":  # all ranks that have data have the same weight
        return min(count, 1)
    if stats_mode == "N":  # the number of samples
        return batch_size * min(count, 1)
    if stats_mode == "exact":  # the number of elements
        return count
    raise ValueError(f"expected stats_mode to be one of {STATS_MODES}, got {stats_mode!r}")


def fixed_divisor(stats_mode: str, world_size: int) -> int | None:
    """Return the divisor :math:`D` where it is a constant: the world size in ``'default'``, else None.

    None stands for the sum of the weights (at least 1), which is known only after the all-reduce.
    """
    return world_size if stats_mode == "default" else None


def payload_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype in which statistics travel: float64, or float32 where the device has nothing wider.

    The variance between the ranks' means is a difference that cancels when ``|mean| >> std``: see :func:`combine`.
    """
    return torch.float32 if device.type == "mps" else torch.float64


class Statistics(NamedTuple):
    """The statistics in a total. Every field has the total's device and dtype."""

    mean: Tensor  #: (C,)
    var: Tensor  #: (C,) biased
    divisor: Tensor  #: () D
    weight: Tensor  #: () W, the sum of the weights
    elements: Tensor  #: () M, the number of elements per channel on all ranks together


def combine(total: Tensor, divisor: int | None) -> Statistics:
    """Compute mean and variance from the summed payloads.

    With :math:`S_1 = \\sum w_r \\mu_r`, :math:`S_2 = \\sum w_r v_r` and :math:`S_3 = \\sum w_r \\mu_r^2`, expanding the
    square in the definition of the variance gives :math:`v = (S_2 + B) / D`, where the variance between the ranks is

    .. math:: B = \\sum_r w_r (\\mu_r - \\mu)^2 = S_3 - \\mu (2 S_1 - \\mu W) .

    This difference has a rounding error of up to :math:`2^{-50} S_3` in float64. A smaller :math:`B` is
    indistinguishable from 0, and counts as 0. So nothing is lost if only one rank has data, however large its mean is.
    Between ranks the variance has a relative error of at most :math:`10^{-15} (\\mu / \\sigma)^2`.

    Args:
        total: (3C + 2,), the sum over the ranks of :math:`[w \\mu, w v, w \\mu^2, w, m]`.
        divisor: the result of :func:`fixed_divisor`.
    """
    c = total.numel() // 3  # channels
    s1, s2, s3, weight, elements = total[:c], total[c : 2 * c], total[2 * c : -2], total[-2], total[-1]
    d = weight.clamp(min=1) if divisor is None else torch.full_like(weight, divisor)
    mean = s1 / d
    between = s3 - mean * (2 * s1 - mean * weight)
    noise = torch.where(between < 4 * torch.finfo(total.dtype).eps * s3, between, 0).detach()
    return Statistics(mean, (s2 + (between - noise)) / d, d, weight, elements)
