"""The layer as native kernels for CPU tensors: the four stages of :mod:`sbnref.impls.reference`, one source file each.

The kernels are in ``csrc/cpu``, with the stages' names. Here are only their Python signatures and, for
:func:`torch.compile`, the shapes of what they return.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ..running import RunningStats
from . import build
from .shapes import register_shapes


def why_not(device: torch.device) -> str | None:
    """Why the kernels cannot run on ``device``; None if they can. Builds them where they have to be built."""
    return _unavailable() if device.type == "cpu" else "the kernels need CPU tensors"


def why_not_yet(device: torch.device) -> str | None:
    """The same, and nothing is built: that they have to be built is a reason."""
    return _not_built() or _unavailable() if device.type == "cpu" else why_not(device)


# Every call of a layer asks, and the answers take a look at all sources.


@functools.cache
def _not_built() -> str | None:
    return build.why_not_yet(build.CPU)


@functools.cache
def _unavailable() -> str | None:
    if (reason := build.why_not(build.CPU)) is None:
        register_shapes("sbnref_cpu")
    return reason


# torch.compiler.assume_constant_result, without the second that its import takes: torch.compile runs them, untraced.
why_not._dynamo_marked_constant = True  # type: ignore[attr-defined]
why_not_yet._dynamo_marked_constant = True  # type: ignore[attr-defined]


def forward_stats(
    x: Tensor,  # (N, C, *)
    weight: int,
) -> Tensor:  # (3C + 2,)
    """What this rank tells the others about its batch."""
    return torch.ops.sbnref_cpu.forward_stats(x, weight)


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
    """Normalize by the statistics of all ranks, and move the running ones."""
    mean, var, num_batches_tracked = running or (None, None, None)
    return torch.ops.sbnref_cpu.forward_apply(
        x, total, divisor, gamma, beta, eps, mean, var, num_batches_tracked, momentum
    )


def backward_stats(
    dy: Tensor,  # (N, C, *)
    x: Tensor,  # (N, C, *)
    saved: Tensor,  # (4, C)
) -> Tensor:  # (2C,)
    """What this rank tells the others about its upstream gradient."""
    return torch.ops.sbnref_cpu.backward_stats(dy, x, saved)


def backward_apply(
    dy: Tensor,  # (N, C, *)
    x: Tensor,  # (N, C, *)
    total: Tensor,  # (2C,)
    saved: Tensor,  # (4, C)
    gamma: Tensor | None,  # (C,)
    k: float,
) -> Tensor:  # dx (N, C, *)
    """The derivative of the loss, summed over all ranks, by this rank's input."""
    return torch.ops.sbnref_cpu.backward_apply(dy, x, total, saved, gamma, k)


def gradients(
    dy: Tensor,  # (N, C, *)
    x: Tensor,  # (N, C, *)
    total: Tensor,  # (2C,)
    saved: Tensor,  # (4, C)
    gamma: Tensor,  # (C,)
    beta: Tensor,  # (C,)
    k: float,
    ranks: int,
) -> tuple[Tensor, Tensor, Tensor]:  # dx (N, C, *), dgamma (C,), dbeta (C,)
    """The last stage with the gradients of gamma and beta, which are averages over the ranks, in one call."""
    return torch.ops.sbnref_cpu.gradients(dy, x, total, saved, gamma, beta, k, ranks)
