"""What the operators of a compiled library return, without running them: for :func:`torch.compile`."""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch._prims_common import suggest_memory_format


@functools.cache
def register_shapes(namespace: str) -> None:
    """Tell PyTorch the shapes that the stages in ``torch.ops.<namespace>`` return. Their library must be loaded."""

    @torch.library.register_fake(f"{namespace}::forward_stats")
    def _(x: Tensor, weight: int) -> Tensor:
        return x.new_empty(3 * x.shape[1] + 2, dtype=torch.float64)

    @torch.library.register_fake(f"{namespace}::forward_apply")
    def _(x: Tensor, *args: object) -> tuple[Tensor, Tensor]:
        return _empty_like(x), x.new_empty((4, x.shape[1]), dtype=torch.float64)

    @torch.library.register_fake(f"{namespace}::backward_stats")
    def _(dy: Tensor, x: Tensor, saved: Tensor) -> Tensor:
        return x.new_empty(2 * x.shape[1], dtype=torch.float64)

    @torch.library.register_fake(f"{namespace}::backward_apply")
    def _(dy: Tensor, x: Tensor, *args: object) -> Tensor:
        return _empty_like(x)

    @torch.library.register_fake(f"{namespace}::gradients")
    def _(
        dy: Tensor, x: Tensor, total: Tensor, saved: Tensor, gamma: Tensor, beta: Tensor, *args: object
    ) -> tuple[Tensor, ...]:
        return _empty_like(x), gamma.new_empty(gamma.shape), beta.new_empty(beta.shape)


def _empty_like(x: Tensor) -> Tensor:
    """As the operators allocate it: with x's strides, or those of the nearest memory format where x is not dense."""
    if torch.ops.aten.is_non_overlapping_and_dense(x):
        return torch.empty_like(x)
    return torch.empty_like(x, memory_format=suggest_memory_format(x))
