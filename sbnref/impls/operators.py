"""The stages of a compiled library as Python functions: calls of its operators, and the shapes of their results."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..running import RunningStats


def stages_of(namespace: str) -> tuple[Callable[..., Any], ...]:
    """Return the stages, ``gradients`` and ``dense`` for an implementation by ``torch.ops.<namespace>``."""

    def call(stage: str, *args: Any) -> Any:
        """Call an operator. Exceptions cannot cross the library's boundary: an operator that failed returns None."""
        operators = getattr(torch.ops, namespace)
        operator = getattr(operators, stage).default
        result = operator(*args)
        if not _failed(result):
            return result
        if "out of memory" in operators.failure():
            torch.cuda.empty_cache()  # it may hold the memory that CUDA lacks for the kernels' counters
            if not _failed(result := operator(*args)):
                return result
        torch.empty_like(args[0])  # raises PyTorch's own error if memory is short
        raise RuntimeError(f"{stage}: {operators.failure()}")

    def forward_apply(
        x: Tensor,  # (N, C, *)
        total: Tensor,  # (3C + 2,)
        divisor: int | None,
        gamma: Tensor | None,  # (C,)
        beta: Tensor | None,  # (C,)
        eps: float,
        running: RunningStats | None,  # updated in place
        momentum: float | None,
    ) -> tuple[Tensor, Tensor]:  # y (N, C, *) and saved (4, C)
        """Normalize by the statistics of all ranks, and update the running ones."""
        mean, var, steps = running or (None, None, None)
        return call("forward_apply", x, total, divisor, gamma, beta, eps, mean, var, steps, momentum)

    def gradients(
        dy: Tensor,  # (N, C, *)
        x: Tensor,  # (N, C, *)
        total: Tensor,  # (2C,)
        saved: Tensor,  # (4, C)
        gamma: Tensor | None,  # (C,)
        beta: Tensor | None,  # (C,)
        weight: int,
        ranks: int,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:  # dx (N, C, *), dgamma (C,), dbeta (C,)
        """Like ``backward_apply``, with the gradients of gamma and beta, averaged over the ranks, in the same call."""
        dx, dgamma, dbeta = call("gradients", dy, x, total, saved, gamma, beta, weight, ranks)
        return dx, None if gamma is None else dgamma, None if beta is None else dbeta

    # These operators have the arguments of the functions in sbnref.impls.reference.
    forward_stats, backward_stats, backward_apply = (
        functools.partial(call, stage) for stage in ("forward_stats", "backward_stats", "backward_apply")
    )
    return forward_stats, forward_apply, backward_stats, backward_apply, gradients, dense


def _failed(result: Any) -> bool:
    return (result[0] if isinstance(result, tuple) else result) is None


def dense(x: Tensor) -> Tensor:
    """Return x if its elements lie side by side in memory, otherwise a copy, so that no stage has to make one."""
    if torch.compiler.is_compiling() or x.is_contiguous() or torch.ops.aten.is_non_overlapping_and_dense(x):
        return x  # compiled code cannot test this; there the operators copy
    return x.clone()


@functools.cache
def register_shapes(namespace: str) -> None:
    """Register the shapes that the operators return, for :func:`torch.compile`. Their library must be loaded."""

    @torch.library.register_fake(f"{namespace}::forward_stats")
    def _(x: Tensor, weight: int) -> Tensor:
        return x.new_empty(3 * x.shape[1] + 2, dtype=torch.float64)

    @torch.library.register_fake(f"{namespace}::forward_apply")
    def _(x: Tensor, *args: object) -> tuple[Tensor, Tensor]:
        return torch.empty_like(x), x.new_empty((4, x.shape[1]), dtype=torch.float64)

    @torch.library.register_fake(f"{namespace}::backward_stats")
    def _(dy: Tensor, x: Tensor, saved: Tensor) -> Tensor:
        return x.new_empty(2 * x.shape[1], dtype=torch.float64)

    @torch.library.register_fake(f"{namespace}::backward_apply")
    def _(dy: Tensor, x: Tensor, *args: object) -> Tensor:
        return torch.empty_like(x)

    @torch.library.register_fake(f"{namespace}::gradients")
    def _(
        dy: Tensor, x: Tensor, total: Tensor, saved: Tensor, gamma: Tensor | None, beta: Tensor | None, *args: object
    ) -> tuple[Tensor, ...]:
        empty = x.new_empty(0, dtype=torch.float64)
        return torch.empty_like(x), *(empty if p is None else p.new_empty(p.shape) for p in (gamma, beta))
