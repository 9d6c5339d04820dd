"""Fused CUDA kernels: the four stages of :mod:`sbnref.impls.reference`, one kernel and one file each in ``csrc``."""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import torch

from . import build
from .operators import register_shapes, stages_of


def why_not(device: torch.device) -> str | None:
    """Return why the kernels cannot run on ``device``, or None. Builds them if needed."""
    if (reason := _wrong_device(device) or build.why_not(_wanted())) is None:
        register_shapes("sbnref")
    return reason


def why_not_yet(device: torch.device) -> str | None:
    """Like ``why_not``, but never builds: kernels that are not built yet count as unavailable."""
    return _wrong_device(device) or build.why_not_yet(_wanted()) or why_not(device)


# As torch.compiler.assume_constant_result, without its slow import: torch.compile runs the function untraced.
why_not._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _wrong_device(device: torch.device) -> str | None:
    if build.simulated() and device.type != "cpu":
        return "SBNREF_CUDASIM=1 simulates the kernels on CPU tensors; unset it to run them on the GPU"
    if not build.simulated() and device.type != "cuda":
        return "the kernels need CUDA tensors; set SBNREF_CUDASIM=1 to simulate them on CPU tensors"
    return None


def operators() -> Any:
    """Load and return the kernels' operators: the stages, ``build_info`` and ``launch_plan``.

    Raises:
        BuildError: the library can be neither found nor built.
    """
    build.load(_wanted())
    return torch.ops.sbnref


def simulation() -> ModuleType:
    """Return the Python module that controls the simulation, for example the order of threads.

    Raises:
        BuildError: the simulation can be neither found nor built.
    """
    module = build.load(build.SIMULATION)
    assert module is not None
    return module


@functools.cache
def _wanted() -> build.Library:
    """Return the simulation or the real kernels; a process keeps its first choice."""
    return build.SIMULATION if build.simulated() else build.KERNELS


forward_stats, forward_apply, backward_stats, backward_apply, gradients, dense = stages_of("sbnref")
