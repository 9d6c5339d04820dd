"""Padding: the layer over the valid positions of padded batches is the layer over those positions alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ...functional import masked
from ...modes import STATS_MODES
from ..oracle import train_step
from .parts import CHANNELS, Case, affine_of, close, random_inputs, random_layer
from .validation import expect_error

# The valid positions of each rank's samples: ragged; of no sample; none; ragged.
LENGTHS: tuple[list[int], ...] = ([5, 2, 0], [], [0, 0], [1, 4])


def cases() -> Iterator[Case]:
    """Family ``padding``."""
    for stats_mode in STATS_MODES:
        yield Case(f"padding: {stats_mode}", len(LENGTHS), partial(check_padding, stats_mode))
    yield Case("padding: second derivatives", len(LENGTHS), check_second_derivatives)
    yield Case("padding: a bad mask", 2, check_bad_masks)
    yield Case("padding: a layer that does more", 2, check_bad_layers)
    yield Case("padding: transforms", len(LENGTHS), check_mapped)


def padded(rank: int, device: str, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    """Return a rank's input and upstream gradient, (N, C, 5), and its mask, (N, 5). Padding is NaN in the input."""
    xs, dys = random_inputs([len(lengths) for lengths in LENGTHS], [(5,)] * len(LENGTHS), dtype)
    lengths = torch.tensor(LENGTHS[rank], dtype=torch.int64)
    mask = torch.arange(5) < lengths[:, None]
    x = torch.where(mask[:, None], xs[rank], torch.nan)
    return x.to(device), dys[rank].to(device), mask.to(device)


def pack(x: Tensor, mask: Tensor) -> Tensor:  # (N, C, L), (N, L) -> (M, C)
    """Return the valid positions."""
    return x.movedim(1, -1)[mask]


def check_padding(stats_mode: str, impl: str, device: str) -> None:
    """A step equals the definition over the valid positions of all ranks; padding is zero in output and gradient."""
    rank = dist.get_rank()
    every = [padded(r, device) for r in range(len(LENGTHS))]
    layer = random_layer(stats_mode=stats_mode, impl=impl, device=device, dtype=torch.float64)
    xs, dys = ([pack(t[i], t[2]) for t in every] for i in (0, 1))
    want = train_step(xs, dys, *affine_of(layer), stats_mode)

    x, dy, mask = every[rank]
    x.requires_grad_()
    y = masked(layer, x, mask)
    y.backward(dy)
    assert x.grad is not None
    for name, got, expected in (("y", y, want.y[rank]), ("dx", x.grad, want.dx[rank])):
        assert got.shape == x.shape
        close(name, pack(got, mask), expected)
        assert not pack(got, ~mask).count_nonzero(), f"{name} is not zero in the padding"
    close("dgamma", layer.weight.grad, want.dgamma)
    close("dbeta", layer.bias.grad, want.dbeta)
    close("running_mean", layer.running_mean, 0.1 * want.mean)
    close("running_var", layer.running_var, 0.9 + 0.1 * want.unbiased_var)


def check_second_derivatives(impl: str, device: str) -> None:
    """A gradient penalty has the same gradient with padding as without."""
    x, dy, mask = padded(dist.get_rank(), device)
    layer = random_layer(stats_mode="exact", impl=impl, device=device, dtype=torch.float64)

    def penalized(valid: bool) -> Tensor:
        leaf = (pack(x, mask) if valid else x).detach().requires_grad_()
        y, upstream = (layer(leaf), pack(dy, mask)) if valid else (masked(layer, leaf, mask), dy)
        (dx,) = torch.autograd.grad((y**3 * upstream).sum(), leaf, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), leaf)[0]

    got = penalized(False)
    close("ddx", pack(got, mask), penalized(True), rtol=1e-9, atol=1e-9)
    assert not pack(got, ~mask).count_nonzero()


def check_bad_masks(impl: str, device: str) -> None:
    """A mask of a wrong shape, dtype or kind raises before anything is communicated."""
    layer = random_layer(impl=impl, device=device)
    x = torch.randn(2, CHANNELS, 3, device=device)
    mask = torch.ones(2, 3, dtype=torch.bool, device=device)
    shapes = "mask of shape (N, *) = (2, 3) for input of shape (2, 5, 3), got (2, 5, 3)"
    for error, text, bad in (
        (ValueError, shapes, mask[:, None] | (x > 0)),
        (TypeError, "mask of torch.bool, True where a position is valid, got torch.int64", mask.long()),
        (TypeError, "mask to be a Tensor, got list", mask.tolist()),
        (TypeError, "a dense mask, got torch.sparse_coo", mask.to_sparse()),
    ):
        with expect_error(error, text):
            masked(layer, x, bad)  # type: ignore[arg-type]
    with expect_error(ValueError, "input of at least 2 dimensions (N, C, *), got shape (5,)"):
        masked(layer, x[0, :, 0], mask)
    assert layer.num_batches_tracked == 0


def check_bad_layers(impl: str, device: str) -> None:
    """A layer's output raises if it cannot take the place of its input."""
    x = torch.randn(2, CHANNELS, 3, device=device)
    mask = torch.ones(2, 3, dtype=torch.bool, device=device)
    bad_layers: list[tuple[type[Exception], str, Callable[[Tensor], Any]]] = [
        (ValueError, f"the shape (M, C) = (6, {CHANNELS}) of the valid positions, got (6, 1)", lambda y: y[:, :1]),
        (ValueError, f"of the valid positions, got ({CHANNELS},)", lambda y: y.mean(0)),
        (TypeError, "torch.float32 on {}, got torch.float64", lambda y: y.double()),
        (TypeError, "layer to return a Tensor, got tuple", lambda y: (y,)),
    ]
    for error, text, returns in bad_layers:
        with expect_error(error, text.format(x.device)):
            masked(returns, x, mask)


def check_mapped(impl: str, device: str) -> None:
    """Under ``vmap`` weights and inputs may be mapped, and masks may not."""
    x, _, mask = padded(dist.get_rank(), device)
    x = x.where(mask[:, None], torch.zeros_like(x))
    layer = random_layer(impl=impl, device=device, dtype=torch.float64, stats_mode="exact", track_running_stats=False)
    weights = torch.stack([layer.weight.detach(), 2 * layer.weight.detach()])

    def normalize(weight: Tensor, x: Tensor) -> Tensor:
        return masked(partial(torch.func.functional_call, layer, {"weight": weight}), x, mask)

    got = torch.func.vmap(normalize, in_dims=(0, None))(weights, x)
    close("y by weight", got, torch.stack([normalize(weight, x) for weight in weights]))
    xs = torch.stack([x, 3 * x])
    want = torch.stack([normalize(*each) for each in zip(weights, xs, strict=True)])
    close("y", torch.func.vmap(normalize)(weights, xs), want)
    with expect_error(ValueError, "expected one mask under vmap, got a batch of masks"):
        torch.func.vmap(partial(masked, layer, x))(torch.stack([mask, mask]))
