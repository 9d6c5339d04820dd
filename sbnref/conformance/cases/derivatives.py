"""Derivatives: of some inputs only, and second ones across ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from ...composed import composed_sync_batch_norm
from ...functional import sync_batch_norm
from ...modes import STATS_MODES, fixed_divisor, rank_weight
from ..oracle import elements_per_channel, train_step
from .parts import CHANNELS, Case, affine_of, close, random_inputs, random_layer


def cases() -> Iterator[Case]:
    """Family ``second derivatives``, and the option to want some gradients only."""
    for stats_mode in STATS_MODES:
        yield Case(f"second derivatives: {stats_mode}", 3, partial(check_double_backward, stats_mode))
    yield Case("second derivatives: of something else on every rank", 2, check_partial_double_backward)
    yield Case("options: gradients of some inputs only", 2, check_partial_gradients)


def check_double_backward(stats_mode: str, impl: str, device: str) -> None:
    """A gradient penalty across ranks has the oracle's gradient, in float64, an empty rank included."""
    for sizes in ([3, 2, 4], [3, 0, 2]):
        xs, dys = random_inputs(sizes, [(3,)] * 3, torch.float64)
        rank = dist.get_rank()
        gamma = torch.linspace(0.5, 1.5, CHANNELS, dtype=torch.float64)

        def penalty(layer: Callable[..., Tensor]) -> list[Tensor]:
            x, w, b = (t.detach().to(device).requires_grad_() for t in (xs[rank], gamma, gamma - 1))  # noqa: B023
            dy = dys[rank].to(device).requires_grad_()  # noqa: B023
            first = torch.autograd.grad((layer(x, w, b) ** 3 * dy).sum(), (x, w, b), create_graph=True)
            loss = torch.stack([(g**2).sum() for g in first]).sum()
            return [*first, *torch.autograd.grad(loss, (x, w, b, dy))]

        def hand_written(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
            return sync_batch_norm(x, None, None, w, b, True, stats_mode=stats_mode, impl=impl)

        def composed(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
            n, divisor = x.shape[0], fixed_divisor(stats_mode, 3)
            weight = rank_weight(stats_mode, n, elements_per_channel(x))
            return composed_sync_batch_norm(x, w, b, 1e-5, weight, divisor, dist.group.WORLD)

        names = ("dx", "dgamma", "dbeta", "ddx", "ddgamma", "ddbeta", "ddy")
        for name, got, want in zip(names, penalty(hand_written), penalty(composed), strict=True):
            close(name, got, want, rtol=1e-9, atol=1e-9)


def check_partial_double_backward(impl: str, device: str) -> None:
    """Where ranks want second derivatives by different parameters, their collectives still meet, and x gets its own."""
    xs, dys = random_inputs([2, 3], [(4,), (4,)], torch.float64)
    rank = dist.get_rank()
    gamma = torch.linspace(0.5, 1.5, CHANNELS, dtype=torch.float64, device=device)

    def second(wanted: tuple[bool, bool], name: str) -> Tensor:
        x = xs[rank].detach().to(device).requires_grad_()
        w, b = (t.clone().requires_grad_(wants) for t, wants in zip((gamma, gamma - 1), wanted, strict=True))
        y = sync_batch_norm(x, None, None, w, b, True, stats_mode="exact", impl=name)
        (dx,) = torch.autograd.grad((y**3 * dys[rank].to(device)).sum(), x, create_graph=True)
        dx.square().sum().backward()
        assert x.grad is not None
        return x.grad

    close("ddx", second((rank == 0, rank == 1), impl), second((True, True), "reference"), rtol=1e-9, atol=1e-9)


def check_partial_gradients(impl: str, device: str) -> None:
    """Whatever needs a gradient gets the right one, and what does not gets none."""
    rank = dist.get_rank()
    xs, dys = random_inputs([2, 3], [(4,), (4,)], torch.float32)
    for needs_x, needs_parameters in ((True, False), (False, True)):
        layer = random_layer(stats_mode="N", impl=impl, device=device).requires_grad_(needs_parameters)
        want = train_step(xs, dys, *affine_of(layer), "N")
        x = xs[rank].detach().to(device).requires_grad_(needs_x)
        layer(x).backward(dys[rank].to(device))
        for name, tensor, expected in (("dx", x, want.dx[rank]), ("dgamma", layer.weight, want.dgamma)):
            if tensor.requires_grad:
                close(name, tensor.grad, expected)
            else:
                assert tensor.grad is None
    with torch.no_grad():
        assert not layer(x).requires_grad
