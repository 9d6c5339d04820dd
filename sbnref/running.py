"""The running statistics, and their update in a training step."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .modes import Statistics


class RunningStats(NamedTuple):
    """The buffers that training updates in place."""

    mean: Tensor  #: (C,) any floating dtype
    var: Tensor  #: (C,) unbiased
    num_batches_tracked: Tensor | None  #: () int64


@torch.no_grad()
def update_running_stats(running: RunningStats, stats: Statistics, momentum: float | None) -> None:
    """Update the running statistics, identically on every rank and without a host sync.

    The variance is corrected by :math:`M / (M - 1)` with the group's M, not the rank's own, so all ranks stay equal
    even if their batches differ in size. A step in which every rank is empty changes nothing, not even
    ``num_batches_tracked``.

    Args:
        running: updated in place.
        stats: the statistics of this step.
        momentum: the factor of the exponential average; None for the cumulative average.
    """
    seen = stats.elements > 0
    if running.num_batches_tracked is not None:
        running.num_batches_tracked.add_(seen)
    if momentum is None:
        assert running.num_batches_tracked is not None  # validation.check_call has made sure
        factor = 1 / running.num_batches_tracked.to(stats.mean.dtype)
    else:
        factor = torch.full_like(stats.elements, momentum)
    unbiased = stats.var * stats.elements / (stats.elements - 1).clamp(min=1)  # var is 0 already where M is 1
    for buffer, value in ((running.mean, stats.mean), (running.var, unbiased)):
        moved = buffer.to(value.dtype) * (1 - factor) + value * factor
        buffer.copy_(torch.where(seen, moved, buffer))
