"""Compare on new ranks of this machine: a model from a user's file, or a layer on random input."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ...impls import choose_impl, impl_names, register_impl
from ...impls.from_file import load_functions
from ...impls.user_module import import_target
from ...launch import launch
from ...module import SyncBatchNorm
from ...validation import DTYPES, check_stats_mode
from . import Comparison, check_dtype, check_two, compare, kernels_for


@dataclass(frozen=True)
class RandomLayer:
    """A layer and random input for it, for ``sbnref compare`` without a target.

    Attributes:
        shape: the shape of each rank's input, (N, C, \\*).
        empty_rank: a rank with an empty input.
        dtype: the name of the input's dtype; parameters are float32, or float64 for float64.
        stats_mode: the layer's mode.
        device: the device of the layer and its input.
    """

    shape: tuple[int, ...]
    empty_rank: int | None = None
    dtype: str = "float32"
    stats_mode: str = "default"
    device: str = "cpu"

    def __post_init__(self) -> None:
        names = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
        if self.dtype not in names:
            raise ValueError(f"expected dtype to be one of {', '.join(names)}, got {self.dtype!r}")
        check_stats_mode(self.stats_mode)
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"expected a device that PyTorch can use here, got {self.device!r}: {error}") from error

    def __call__(self) -> tuple[nn.Module, Tensor]:
        """Return the layer, the same on every rank, and this rank's own input."""
        rank = dist.get_rank()
        dtype = getattr(torch, self.dtype)
        generator = torch.Generator().manual_seed(rank)
        samples, channels, *spatial = self.shape
        x = torch.randn(0 if rank == self.empty_rank else samples, channels, *spatial, generator=generator) + rank
        parameters = torch.promote_types(dtype, torch.float32)
        layer = SyncBatchNorm(channels, stats_mode=self.stats_mode, device=self.device, dtype=parameters)
        return layer, x.to(self.device, dtype)


def compare_on_ranks(target: str | RandomLayer, impls: Sequence[str] | None, ranks: int) -> Comparison:
    """Run :func:`compare` on new ranks of this machine.

    Args:
        target: ``'FILE.py:FUNCTION'`` or ``'MODULE:FUNCTION'``, which each rank calls to get (model, inputs); or a
            :class:`RandomLayer`.
        impls: two names, or files with the four stage functions; None as for :func:`compare`.
        ranks: the number of ranks.

    Raises:
        ValueError: the target, an implementation or the empty rank does not exist.
        RuntimeError: an implementation cannot run here.
        RankError: the target raised on a rank.
    """
    make = _find(target) if isinstance(target, str) else target
    if impls is None and isinstance(make, RandomLayer):
        impls = ("reference", kernels_for(torch.device(make.device)))
    if impls is not None:
        check_two(impls)
    if isinstance(make, RandomLayer) and make.empty_rank is not None and not 0 <= make.empty_rank < ranks:
        raise ValueError(f"expected empty_rank to be one of the {ranks} ranks, 0 to {ranks - 1}, got {make.empty_rank}")
    for name in impls or ():
        _register_file(name)
        if isinstance(make, RandomLayer):
            impl = choose_impl(name, torch.device(make.device))  # raises here, before ranks start
            check_dtype(name, impl, getattr(torch, make.dtype))
    return launch(_compare_here, ranks, target, impls)[0]


def _compare_here(target: str | RandomLayer, impls: Sequence[str] | None) -> Comparison:
    for name in impls or ():
        _register_file(name)
    model, inputs = (_find(target) if isinstance(target, str) else target)()
    return compare(model, inputs, impls)


def _register_file(name: str) -> None:
    """Register a file with stage functions under its path."""
    if name in impl_names():
        return
    if name.endswith(".py"):
        register_impl(name, load_functions(name))
    if name.endswith(".cu"):
        from ...lab.implementation import StageKernels  # loaded only for CUDA files

        register_impl(name, StageKernels(Path(name).resolve()))


def _find(target: str) -> Callable[[], tuple[nn.Module, Any]]:
    """Return the function that ``'FILE.py:FUNCTION'`` or ``'MODULE:FUNCTION'`` names."""
    place, _, name = target.rpartition(":")
    if not place:
        raise ValueError(f"expected FILE.py:FUNCTION or MODULE:FUNCTION, got {target!r}")
    try:
        function = getattr(import_target(place), name, None)
    except (ImportError, OSError) as error:
        raise ValueError(f"{place} cannot be imported: {error}") from error
    if not callable(function):
        raise ValueError(f"expected {place} to define a function {name} that returns (model, inputs), found none")
    return function
