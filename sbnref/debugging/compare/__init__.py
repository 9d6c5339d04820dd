"""Two implementations on the same input and the same upstream gradient: where do they part?

The model runs once. What reaches each layer, forward and backward, is kept, and then each stage of each implementation
is given the same: the layer's input, the exact totals, the upstream gradient. So a stage that is wrong is found where
it stands, and not where its error first grew large.

What is run stands in ``run.py``, what is measured in ``measure.py``, the report in ``report.py``; ``ranks.py`` is for
the command, which starts ranks of its own.
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
    model: nn.Module,
    inputs: Any,
    impls: Sequence[str] | None = None,
    *,
    upstream: Any = None,
    seed: int = 0,
) -> Comparison:
    """Run the same input and the same upstream gradient through two implementations, stage by stage.

    The model itself is left as it is: a copy runs one training step. With a process group every rank of it has to
    call, each with its own share of the batch, and every rank gets the whole report.

    Args:
        model: a :class:`sbnref.SyncBatchNorm`, or a model that contains some, in training mode.
        inputs: what the model is called with: a tensor, a tuple of arguments, or a dict of keyword arguments.
        impls: the names of two implementations; None for the reference and the kernels for the model's device (with
            ``SBNREF_CUDASIM=1`` the simulated ones). In the report the second is measured against the first.
        upstream: the gradient by the model's output, in the structure of the output; None for random numbers (and for
            one where the output is a single number, a loss).
        seed: of those random numbers.

    Raises:
        ValueError: the model has no :class:`sbnref.SyncBatchNorm` in training mode, there is no such implementation, or
            it does not take the dtype of a layer's input.
        RuntimeError: an implementation cannot run on the model's device; the message says what is missing.

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
    """The name of the implementation whose kernels a layer's input on ``device`` is for."""
    from ...impls.build import simulated

    return "cuda" if device.type == "cuda" or simulated() else "cpu"


def check_two(impls: Sequence[str]) -> None:
    """Raise :class:`ValueError` unless there are two names."""
    if len(impls) != 2:
        raise ValueError(f"expected the names of two implementations, got {list(impls)}")


def check_dtype(name: str, impl: Implementation, dtype: torch.dtype) -> None:
    """Raise :class:`ValueError` where an implementation says which dtypes it takes, and this is none of them."""
    taken = getattr(impl, "dtypes", (dtype,))
    if dtype not in taken:
        raise ValueError(f"expected input in {' or '.join(map(str, taken))}, which {name} takes, got {dtype}")
