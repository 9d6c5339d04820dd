"""Shared parts of the cases: the class of a case, random inputs and layers, and the comparison with the definition."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ...module import SyncBatchNorm
from ..oracle import over, train_step

CHANNELS = 5

DTYPES = [  # of the input and of the parameters
    (torch.float32, torch.float32),
    (torch.float64, torch.float64),
    (torch.float16, torch.float32),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.float32),
    (torch.bfloat16, torch.bfloat16),
]


@dataclass(frozen=True)
class Case:
    """One guarantee.

    Attributes:
        name: unique, with the family before the first colon.
        world_size: the number of ranks it needs.
        check: runs on each rank with the name of an implementation and a device; raises AssertionError on a failure.
    """

    name: str
    world_size: int
    check: Callable[[str, str], Any]


def close(name: str, got: Tensor | None, want: Tensor, **tolerance: Any) -> None:
    """Compare in the precision of ``got``; the message names the quantity and the rank."""
    message = f"{name} on rank {dist.get_rank()}"
    assert got is not None, f"{message} is None"
    want = want.to(got.device, got.dtype)
    torch.testing.assert_close(got, want, msg=lambda text: f"{message}: {text}", **tolerance)


def random_inputs(sizes: list[int], spatial: list[tuple[int, ...]], dtype: torch.dtype, seed: int = 0) -> Any:
    """Return each rank's input and upstream gradient; means and variances differ by rank and channel."""
    generator = torch.Generator().manual_seed(seed)
    xs, dys = [], []
    for rank, (n, s) in enumerate(zip(sizes, spatial, strict=True)):
        shape = (n, CHANNELS, *s)
        mean, std = torch.randn(2, CHANNELS, generator=generator)
        x = torch.randn(shape, generator=generator)
        xs.append((x * over(x, 1 + std.abs()) + over(x, mean + rank)).to(dtype))
        dys.append(torch.randn(shape, generator=generator).to(dtype))
    return xs, dys


def random_layer(**options: Any) -> SyncBatchNorm:
    """Return a layer with random parameters."""
    layer = SyncBatchNorm(CHANNELS, **options)
    if layer.affine:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            layer.weight.copy_(torch.rand(CHANNELS, generator=generator) + 0.5)
            layer.bias.copy_(torch.randn(CHANNELS, generator=generator))
    return layer


def affine_of(layer: SyncBatchNorm) -> tuple[Tensor, Tensor]:
    """Return gamma and beta, or ones and zeros if the layer has none."""
    if layer.affine:
        return layer.weight, layer.bias
    return torch.ones(CHANNELS), torch.zeros(CHANNELS)


def check_step(
    stats_mode: str,
    sizes: list[int],
    impl: str,
    device: str,
    *,
    spatial: list[tuple[int, ...]] | None = None,
    dtype: torch.dtype = torch.float32,
    param_dtype: torch.dtype = torch.float32,
    affine: bool = True,
) -> None:
    """Check that one training step equals the definition: outputs, gradients, running statistics."""
    xs, dys = random_inputs(sizes, spatial or [(4, 3)] * len(sizes), dtype)
    layer = random_layer(affine=affine, stats_mode=stats_mode, impl=impl, device=device, dtype=param_dtype)
    compare_step(layer, xs, dys, dist.get_rank())


def compare_step(layer: SyncBatchNorm, xs: list[Tensor], dys: list[Tensor], rank: int) -> None:
    """Run a training step on this rank's share and compare all results with the oracle. The layer's momentum is 0.1."""
    device = layer.running_mean.device  # type: ignore[union-attr]
    want = train_step(xs, dys, *affine_of(layer), layer.stats_mode, layer.eps)
    x = xs[rank].detach().to(device).requires_grad_()
    y = layer(x)
    assert y.shape == x.shape
    assert y.dtype == x.dtype
    y.backward(dys[rank].to(device))
    close("y", y, want.y[rank])
    close("dx", x.grad, want.dx[rank])
    if layer.affine:
        close("dgamma", layer.weight.grad, want.dgamma)
        close("dbeta", layer.bias.grad, want.dbeta)
    running_var = 0.9 + 0.1 * want.unbiased_var if want.elements else torch.ones(CHANNELS)
    close("running_mean", layer.running_mean, 0.1 * want.mean)
    close("running_var", layer.running_var, running_var)
    assert layer.num_batches_tracked == (want.elements > 0)
