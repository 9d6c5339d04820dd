"""The layer from differentiable parts, for every use that the hand-written backward pass cannot serve.

The forward stages of the reference are plain PyTorch. With a differentiable all-reduce between them they are the whole
layer, and autograd differentiates it. This layer is the oracle of the hand-written backward pass. It computes second
derivatives (``create_graph=True``) for every implementation, and serves function transforms: :mod:`torch.func`, and
forward mode. A transform needs one fact, that the collective is linear.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .collectives import all_reduce, world_size
from .impls import reference
from .modes import combine, fixed_divisor, rank_weight
from .running import RunningStats, update_running_stats
from .validation import check_running_unmapped

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def composed_sync_batch_norm(
    x: Tensor,  # (N, C, *)
    gamma: Tensor | None,  # (C,)
    beta: Tensor | None,  # (C,)
    eps: float,
    weight: int,  # w, the weight of this rank
    divisor: int | None,  # D, or None for the sum of the weights
    group: ProcessGroup | None,
) -> Tensor:  # y (N, C, *)
    """Normalize ``x`` with differentiable operations only, without running statistics."""
    total = all_reduce(reference.forward_stats(x, weight), group)
    gamma, beta = (None if p is None else average_gradient(p, group) for p in (gamma, beta))
    y, _ = reference.forward_apply(x, total, divisor, gamma, beta, eps, None, None)
    return y


def transformed_sync_batch_norm(
    x: Tensor,  # (N, C, *)
    gamma: Tensor | None,  # (C,)
    beta: Tensor | None,  # (C,)
    eps: float,
    stats_mode: str,
    group: ProcessGroup | None,
    running: RunningStats | None,  # updated in place
    momentum: float | None,
) -> Tensor:  # y (N, C, *)
    """Normalize ``x`` within a function transform.

    Every rank of the group has to be within the same transform, because the derivatives issue collectives too.

    Raises:
        ValueError: the transform maps ``x``, and a batch of statistics cannot update the running ones.
    """
    if running is not None:
        check_running_unmapped(x, *running)
    weight = rank_weight(stats_mode, x.shape[0], x.numel() // x.shape[1])
    divisor = fixed_divisor(stats_mode, world_size(group))
    total = all_reduce(reference.forward_stats(x, weight), group)
    if running is not None:
        _MoveRunningStats.apply(total.detach(), divisor, momentum, *running)
    y, _ = reference.forward_apply(x.to(reference.accumulator(x)), total, divisor, None, None, eps, None, None)
    # Not in place as in the reference: a mapped gamma makes a batch of outputs.
    if gamma is not None:
        y = y * reference.over(x, average_gradient(gamma, group))
    if beta is not None:
        y = y + reference.over(x, average_gradient(beta, group))
    return y.to(x.dtype)


def average_gradient(parameter: Tensor, group: ProcessGroup | None) -> Tensor:
    """Return the parameter, with a gradient that is averaged over the group, in every order of derivative."""
    return _AverageGradient.apply(parameter, group)


def recomputing() -> bool:
    """Return whether this forward pass runs inside a backward pass, as :mod:`torch.utils.checkpoint` repeats it.

    Such a pass needs the statistics of the batch again, so it communicates. The first pass counted the step: the
    running statistics and ``num_batches_tracked`` stay as they are. In compiled code the result is always False,
    because a compiler repeats operations but never an update of a buffer.
    """
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1


class _AverageGradient(torch.autograd.Function):
    @staticmethod
    def forward(parameter: Tensor, group: ProcessGroup | None) -> Tensor:
        return parameter.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ProcessGroup | None], output: Tensor) -> None:
        ctx.group = inputs[1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return all_reduce(grad, ctx.group) / world_size(ctx.group), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        return tangent.clone()

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, None], parameter: Tensor, group: ProcessGroup | None) -> tuple[Tensor, int]:
        return _AverageGradient.apply(parameter, group), in_dims[0]


class _MoveRunningStats(torch.autograd.Function):
    """Update the running statistics, hidden from transforms: they forbid in-place changes of outside tensors."""

    @staticmethod
    def forward(total: Tensor, divisor: int | None, momentum: float | None, *running: Any) -> None:
        update_running_stats(RunningStats(*running), combine(total, divisor), momentum)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None: ...

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int, ...], total: Tensor, *rest: Any) -> tuple[None, None]:
        """Take one total: the input is not mapped, so a batch (of a Jacobian's tangents) repeats the same total."""
        return _MoveRunningStats.apply(total.select(in_dims[0], 0), *rest), None
