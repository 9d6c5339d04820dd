"""Compare two implementations on the same input and the same upstream gradient, stage by stage.

The model runs once, and the input and the upstream gradient of each layer are kept. Then each stage of each
implementation gets the same arguments: the layer's input, the exact totals, the upstream gradient. So an error is found
in the stage that makes it, not in a later one where it has grown.

``run.py`` runs the model, ``measure.py`` measures the stages, ``report.py`` has the report, and ``ranks.py`` starts
ranks for the command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ...collectives import resolve
from ...impls import Implementation, choose_impl
from .report import Comparison, Row
from .run import run_once

__all__ = ["Comparison", "Row", "compare"]


def compare(
    model: nn.Module, inputs: Any, impls: Sequence[str] | None = None, *, upstream: Any = None, seed: int = 0
) -> Comparison:
    """Run the same input and the same upstream gradient through two implementations, stage by stage.

    A copy of the model runs one training step; the model itself does not change. With a process group, call ``compare``
    on every rank, with the rank's own share of the batch. Every rank gets the whole report.

    Args:
        model: a :class:`sbnref.SyncBatchNorm`, or a model that contains some, in training mode.
        inputs: the arguments of the model: a tensor, a tuple, or a dict of keyword arguments.
        impls: the names of two implementations; None for the reference and the kernels for the model's device (with
            ``SBNREF_CUDASIM=1`` the simulated ones). In the report the second is measured against the first.
        upstream: the gradient by the model's output, in the structure of the output; None for random numbers, or for 1
            if the output is a single number, a loss.
        seed: the seed of the random numbers.

    Raises:
        ValueError: the model has no :class:`sbnref.SyncBatchNorm` in training mode, an implementation is unknown or
            does not support the dtype of a layer's input.
        RuntimeError: an implementation cannot run on the model's device; the message names what is missing.

    Example:
        >>> layer = sbnref.SyncBatchNorm(8, stats_mode="N")
        >>> sbnref.compare(layer, torch.randn(4, 8, 5, 5), impls=("reference", "reference")).agrees
        True
    """
    from .measure import compare_call

    if impls is not None:
        check_two(impls)
    calls = run_once(model, inputs, "reference" if impls is None else impls[0], upstream, seed)
    for name in impls or ():
        for call in calls:
            check_dtype(name, choose_impl(name, call.x.device), call.x.dtype)
    first, second = impls or ("reference", kernels_for(calls[0].x.device if calls else torch.device("cpu")))
    rows = [row for call in calls for row in compare_call(call, (first, second))]
    if resolve(None) is not None:
        by_rank: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(by_rank, rows)
        rows = [row for rows_of_rank in by_rank for row in rows_of_rank]
    return Comparison((first, second), rows)


def kernels_for(device: torch.device) -> str:
    """Return the name of the implementation with kernels for ``device``."""
    from ...impls.build import simulated

    return "cuda" if device.type == "cuda" or simulated() else "cpu"


def check_two(impls: Sequence[str]) -> None:
    """Raise :class:`ValueError` unless there are two names."""
    if len(impls) != 2:
        raise ValueError(f"expected the names of two implementations, got {list(impls)}")


def check_dtype(name: str, impl: Implementation, dtype: torch.dtype) -> None:
    """Raise :class:`ValueError` if the implementation does not support the dtype."""
    taken = getattr(impl, "dtypes", (dtype,))
    if dtype not in taken:
        raise ValueError(f"expected input in {' or '.join(map(str, taken))} for {name}, got {dtype}")
