"""The layer as fused CUDA kernels: the four stages of :mod:`sbnref.impls.reference`, one kernel each.

The kernels are in ``csrc``, one file per stage with the same name. Here are only their Python signatures and, for
:func:`torch.compile`, the shapes of what they return.
"""

from __future__ import annotations

import functools
from types import ModuleType

import torch
from torch import Tensor

from ..running import RunningStats
from . import build
from .shapes import register_shapes


def why_not(device: torch.device) -> str | None:
    """Why the kernels cannot run on ``device``; None if they can. Builds them where they have to be built."""
    if (reason := _wrong_device(device) or build.why_not(_wanted())) is None:
        register_shapes("sbnref")
    return reason


def why_not_yet(device: torch.device) -> str | None:
    """The same, and nothing is built: that they have to be built is a reason."""
    return _wrong_device(device) or build.why_not_yet(_wanted()) or why_not(device)


# torch.compiler.assume_constant_result, without the second that its import takes: torch.compile runs it, untraced.
why_not._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _wrong_device(device: torch.device) -> str | None:
    if build.simulated() and device.type != "cpu":
        return "SBNREF_CUDASIM=1 simulates the kernels on CPU tensors; unset it to run them on the GPU"
    if not build.simulated() and device.type != "cuda":
        return "the kernels need CUDA tensors; set SBNREF_CUDASIM=1 to simulate them on CPU tensors"
    return None


def library() -> ModuleType:
    """The kernels' library, loaded: what is no tensor operation, such as the launch plan for a shape.

    Raises:
        BuildError: it can be neither found nor built.
    """
    module = build.load(_wanted())
    assert module is not None
    return module


@functools.cache
def _wanted() -> build.Library:
    """A process has either the simulation or the real kernels: it keeps what it asked for first."""
    return build.SIMULATION if build.simulated() else build.KERNELS


def forward_stats(
    x: Tensor,  # (N, C, *)
    weight: int,
) -> Tensor:  # (3C + 2,)
    """What this rank tells the others about its batch."""
    return torch.ops.sbnref.forward_stats(x, weight)


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
    return torch.ops.sbnref.forward_apply(x, total, divisor, gamma, beta, eps, mean, var, num_batches_tracked, momentum)


def backward_stats(
    dy: Tensor,  # (N, C, *)
    x: Tensor,  # (N, C, *)
    saved: Tensor,  # (4, C)
) -> Tensor:  # (2C,)
    """What this rank tells the others about its upstream gradient."""
    return torch.ops.sbnref.backward_stats(dy, x, saved)


def backward_apply(
    dy: Tensor,  # (N, C, *)
    x: Tensor,  # (N, C, *)
    total: Tensor,  # (2C,)
    saved: Tensor,  # (4, C)
    gamma: Tensor | None,  # (C,)
    k: float,
) -> Tensor:  # dx (N, C, *)
    """The derivative of the loss, summed over all ranks, by this rank's input."""
    return torch.ops.sbnref.backward_apply(dy, x, total, saved, gamma, k)


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
    """The last stage with the gradients of gamma and beta, which are averages over the ranks, in the same kernel."""
    return torch.ops.sbnref.gradients(dy, x, total, saved, gamma, beta, k, ranks)
