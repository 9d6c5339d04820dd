"""All that is special about function transforms: those of :mod:`torch.func`, and forward mode.

A transform differentiates or maps what it sees, so it is shown differentiable parts, those of the composed layer. The
one collective is linear, and that is all a transform has to know of it: the tangent of a sum over the ranks is the sum
of the tangents, and a batch of payloads is summed as one is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .collectives import all_reduce, world_size
from .composed import average_gradient
from .impls import reference
from .modes import combine, fixed_divisor, rank_weight
from .refusals import check_running_unmapped
from .running import RunningStats, update_running_stats

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def transformed_sync_batch_norm(
    x: Tensor,  # (N, C, *)
    gamma: Tensor | None,  # (C,)
    beta: Tensor | None,  # (C,)
    running: RunningStats | None,  # updated in place
    momentum: float | None,
    eps: float,
    stats_mode: str,
    group: ProcessGroup | None,
) -> Tensor:  # y (N, C, *)
    """Normalize ``x`` within a transform.

    Every rank of the group has to be within the same transform: what it derives makes collectives too.

    Raises:
        ValueError: running statistics would have to be moved by a batch of statistics.
    """
    if running is not None:
        check_running_unmapped(x, *running)
    weight = rank_weight(stats_mode, x.shape[0], x.numel() // x.shape[1])
    divisor = fixed_divisor(stats_mode, world_size(group))
    total = all_reduce(reference.forward_stats(x, weight), group)
    if running is not None:
        _MoveRunningStats.apply(total.detach(), divisor, momentum, *running)
    y, _ = reference.forward_apply(x.to(reference.accumulator(x)), total, divisor, None, None, eps, None, None)
    # Not in place, as the reference does it: a mapped gamma makes a batch of what was none.
    if gamma is not None:
        y = y * reference.over(x, average_gradient(gamma, group))
    if beta is not None:
        y = y + reference.over(x, average_gradient(beta, group))
    return y.to(x.dtype)


class _MoveRunningStats(torch.autograd.Function):
    """Out of the transforms' sight, which forbid to change a tensor in place that is not their own."""

    @staticmethod
    def forward(total: Tensor, divisor: int | None, momentum: float | None, *running: Any) -> None:
        update_running_stats(RunningStats(*running), combine(total, divisor), momentum)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, ...], total: Tensor, *rest: Any) -> tuple[None, None]:
        """The input is not mapped, so what looks like a batch (a Jacobian's tangents are one) is one total repeated."""
        return _MoveRunningStats.apply(total.select(in_dims[0], 0), *rest), None
