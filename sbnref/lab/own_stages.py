"""Recordings of the package's own four kernels."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..impls import STAGES, build, cuda
from ..running import RunningStats
from .kernels import channels_last, declare
from .recording import Recording, take


def record_stages(x: Tensor, stages: Sequence[str] = STAGES) -> dict[str, Recording]:
    """Run the four stages on a tensor, as the only rank does in training, and record some of them.

    Args:
        x: (N, C, \\*), the input, and the gradient too.
        stages: which to record.

    Raises:
        ValueError: the tensor is too large for a recording.
        RuntimeError: the process does not simulate the kernels; set ``SBNREF_CUDASIM=1`` before they are loaded.
    """
    if (reason := cuda.why_not(torch.device("cpu"))) is not None:
        raise RuntimeError(f"a recording takes the simulation: {reason}")
    lib = ctypes.CDLL(str(build.built(build.SIMULATION)))
    declare(lib)
    works = calls(x)
    return {stage: take(lib, works[stage], x.shape, stage, channels_last(x)) for stage in stages}


def calls(x: Tensor, *, tracking: bool = True) -> dict[str, Callable[[], object]]:
    """The four stages of a training step on x, each with inputs of the right shape, tracking running statistics."""
    channels = x.shape[1]
    gamma, beta = x.new_ones(2, channels)
    running = RunningStats(x.new_zeros(channels), x.new_ones(channels), torch.tensor(0)) if tracking else None
    total = torch.ones(3 * channels + 2, dtype=torch.float64)
    total_back, saved = total[: 2 * channels].clone(), total.new_ones(4, channels)
    return {
        "forward_stats": lambda: cuda.forward_stats(x, 1),
        "forward_apply": lambda: cuda.forward_apply(x, total, None, gamma, beta, 1e-5, running, 0.1),
        "backward_stats": lambda: cuda.backward_stats(x, x, saved),
        "backward_apply": lambda: cuda.backward_apply(x, x, total_back, saved, gamma, 1.0),
    }
