"""The same layer from differentiable parts, which autograd differentiates by itself.

The forward stages of the reference are plain PyTorch, so a differentiable all-reduce between them is the whole layer.
It is the oracle that the hand-written backward pass is held to, and what ``create_graph=True`` runs for every
implementation: second derivatives need a first derivative that is itself made of differentiable operations.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .collectives import all_reduce, world_size
from .impls import reference

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def composed_sync_batch_norm(
    x: Tensor,  # (N, C, *)
    gamma: Tensor | None,  # (C,)
    beta: Tensor | None,  # (C,)
    eps: float,
    weight: int,  # w, what this rank weighs
    divisor: int | None,  # D, or None for the sum of the weights
    group: ProcessGroup | None,
) -> Tensor:  # y (N, C, *)
    """Normalize ``x`` by differentiable operations alone. Running statistics are not its business."""
    total = all_reduce(reference.forward_stats(x, weight), group)
    gamma, beta = (None if p is None else average_gradient(p, group) for p in (gamma, beta))
    y, _ = reference.forward_apply(x, total, divisor, gamma, beta, eps, None, None)
    return y


def average_gradient(parameter: Tensor, group: ProcessGroup | None) -> Tensor:
    """The parameter, whose gradient is averaged over the group: the convention, in every order of derivative."""
    return _AverageGradient.apply(parameter, group)


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
