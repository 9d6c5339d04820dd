"""Recordings of the package's own four kernels."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..impls import STAGES, build, cuda
from ..running import RunningStats
from .kernels import RECORDING_FLAGS
from .recording import Recording, refuse_large, take


def ask_for_recordings() -> None:
    """Have this process simulate the kernels, compiled for recordings; before they are loaded."""
    os.environ["SBNREF_CUDASIM"] = "1"
    os.environ["SBNREF_CUDASIM_FLAGS"] = " ".join(RECORDING_FLAGS)


def record_stages(x: Tensor, stages: Sequence[str] = STAGES) -> dict[str, Recording]:
    """Run the four stages on a tensor, as the only rank does in training, and record some of them.

    Args:
        x: (N, C, \\*), the input; the output is its own gradient.
        stages: which to record.

    Raises:
        ValueError: the tensor is too large for a recording.
        RuntimeError: the process does not simulate kernels that can be recorded, see :func:`ask_for_recordings`.
    """
    refuse_large(x)
    if (reason := cuda.why_not(torch.device("cpu"))) is not None:
        raise RuntimeError(f"a recording takes the simulation: {reason}")
    lib = ctypes.CDLL(str(build.built(build.SIMULATION)))
    if not hasattr(lib, "cudasim_start_recording"):
        raise RuntimeError("the simulation that is loaded was not compiled for recordings")
    works = calls(x)
    return {stage: take(lib, works[stage], x, {"x": x}, stage) for stage in stages}


def calls(x: Tensor) -> dict[str, Callable[[], dict[str, Tensor]]]:
    """The four stages on x, each with inputs of the right shape; what they return are the tensors, by name."""
    channels = x.shape[1]
    gamma, beta = x.new_ones(channels), x.new_zeros(channels)
    steps = torch.tensor(0)
    running = RunningStats(x.new_zeros(channels), x.new_ones(channels), steps)
    total = cuda.forward_stats(x, 1)
    dy, saved = cuda.forward_apply(x, total, None, gamma, beta, 1e-5, None, None)
    total_back = cuda.backward_stats(dy, x, saved)
    of_running = {"running_mean": running.mean, "running_var": running.var, "num_batches_tracked": steps}

    def forward_apply() -> dict[str, Tensor]:
        y, saved = cuda.forward_apply(x, total, None, gamma, beta, 1e-5, running, 0.1)
        return {"total": total, "gamma": gamma, "beta": beta, "y": y, "saved": saved, **of_running}

    def backward_apply() -> dict[str, Tensor]:
        dx = cuda.backward_apply(dy, x, total_back, saved, gamma, 1.0)
        return {"dy": dy, "total": total_back, "saved": saved, "gamma": gamma, "dx": dx}

    return {
        "forward_stats": lambda: {"payload": cuda.forward_stats(x, 1)},
        "forward_apply": forward_apply,
        "backward_stats": lambda: {"dy": dy, "saved": saved, "payload": cuda.backward_stats(dy, x, saved)},
        "backward_apply": backward_apply,
    }
