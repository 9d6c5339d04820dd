"""Numbers that break batch norms: no result is off by more than rounding, and NaN and Inf spread as they should."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from ...module import SyncBatchNorm
from ..accuracy import INPUTS, measure_accuracy
from .parts import CHANNELS, Case, random_inputs


def cases() -> Iterator[Case]:
    """Families ``accuracy`` and ``extremes``."""
    for name in INPUTS:
        yield Case(f"accuracy: {name}", 2, partial(check_accuracy, name))
    yield Case("extremes: NaN and Inf", 2, check_non_finite)


def check_accuracy(name: str, impl: str, device: str) -> dict[str, dict[str, float]]:
    """No quantity is further from float64 than rounding allows."""
    figures = measure_accuracy(name, impl, device)
    for quantity, figure in figures.items():
        assert figure["layer"] <= figure["allowed"], f"{name}: {quantity} on rank {dist.get_rank()} is off: {figure}"
    return figures


def check_non_finite(impl: str, device: str) -> None:
    """NaN and Inf on one rank spoil their channel on every rank and no other, as in BatchNorm over the whole batch."""
    rank = dist.get_rank()
    for value, sizes in itertools.product((torch.nan, torch.inf, -torch.inf), ([2, 3], [2, 0])):
        xs, dys = random_inputs(sizes, [(4, 3), (4, 3)], torch.float32)
        xs[0][1, 2, 3, 0] = value
        peer = nn.BatchNorm2d(CHANNELS)
        whole = torch.cat(xs).requires_grad_()
        y = peer(whole)
        y.backward(torch.cat(dys))
        layer = SyncBatchNorm(CHANNELS, stats_mode="exact", impl=impl, device=device)
        x = xs[rank].detach().to(device).requires_grad_()
        got = layer(x)
        got.backward(dys[rank].to(device))
        mine = slice(0, 2) if rank == 0 else slice(2, None)
        assert x.grad is not None
        assert whole.grad is not None
        pairs: dict[str, tuple[Any, Any]] = {
            "y": (got, y[mine]),
            "dx": (x.grad, whole.grad[mine]),
            "dgamma": (layer.weight.grad, peer.weight.grad),
            "running_mean": (layer.running_mean, peer.running_mean),
            "running_var": (layer.running_var, peer.running_var),
        }
        for name, (ours, theirs) in pairs.items():
            assert torch.equal(ours.isfinite().cpu(), theirs.isfinite()), f"{name} on rank {rank} for {value}: {ours}"
