"""Native kernels for CPU tensors: the four stages of :mod:`sbnref.impls.reference`, one file each in ``csrc/cpu``."""

from __future__ import annotations

import functools

import torch

from . import build
from .operators import register_shapes, stages_of


def why_not(device: torch.device) -> str | None:
    """Return why the kernels cannot run on ``device``, or None. Builds them if needed."""
    return _unavailable() if device.type == "cpu" else "the kernels need CPU tensors"


def why_not_yet(device: torch.device) -> str | None:
    """Like ``why_not``, but never builds: kernels that are not built yet count as unavailable."""
    return _not_built() or _unavailable() if device.type == "cpu" else why_not(device)


# Cached, because every call of a layer asks, and an answer reads all sources.


@functools.cache
def _not_built() -> str | None:
    return build.why_not_yet(build.CPU)


@functools.cache
def _unavailable() -> str | None:
    if (reason := build.why_not(build.CPU)) is None:
        register_shapes("sbnref_cpu")
    return reason


# As torch.compiler.assume_constant_result, without its slow import: torch.compile runs the functions untraced.
why_not._dynamo_marked_constant = True  # type: ignore[attr-defined]
why_not_yet._dynamo_marked_constant = True  # type: ignore[attr-defined]


forward_stats, forward_apply, backward_stats, backward_apply, gradients, dense = stages_of("sbnref_cpu")
