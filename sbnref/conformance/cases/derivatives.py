"""Derivatives: of some inputs only, and second derivatives across ranks."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from ...differentiable import composed_sync_batch_norm
from ...functional import sync_batch_norm
from ...modes import STATS_MODES, fixed_divisor, rank_weight
from ..oracle import elements_per_channel, train_step
from .parts import CHANNELS, Case, affine_of, close, random_inputs, random_layer
from .validation import expect_error


def cases() -> Iterator[Case]:
    """Families ``second derivatives`` and ``transforms``, and the option to compute some gradients only."""
    for stats_mode in STATS_MODES:
        yield Case(f"second derivatives: {stats_mode}", 3, partial(check_double_backward, stats_mode))
    yield Case("second derivatives: of something else on every rank", 2, check_partial_double_backward)
    for stats_mode in STATS_MODES:
        yield Case(f"transforms: {stats_mode}", 3, partial(check_transforms, stats_mode))
    yield Case("transforms: vmap", 2, check_vmap)
    yield Case("transforms: batches of gradients, ranks late", 2, check_batched_gradients)
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


def check_batched_gradients(impl: str, device: str) -> None:
    """A batch of vector-Jacobian products equals the products one by one, and a vectorized Hessian equals a loop.

    One rank comes late, so that a result that is copied before its collective has ended is wrong.
    """
    xs, _ = random_inputs([2, 0], [(), ()], torch.float64)
    rank = dist.get_rank()
    x = xs[rank].to(device).requires_grad_()
    layer = random_layer(stats_mode="exact", impl=impl, device=device, dtype=torch.float64)

    def loss(x: Tensor) -> Tensor:
        y = layer(x)
        if y.requires_grad:
            y.register_hook(lambda _: time.sleep(0.1 * rank))
        return y.pow(3).sum()

    vectors = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64, device=device)
    for create_graph in (False, True):
        got = torch.autograd.grad(loss(x), x, vectors, is_grads_batched=True, create_graph=create_graph)[0]
        want = torch.stack([torch.autograd.grad(loss(x), x, v)[0] for v in vectors])
        close(f"a batch of gradients, create_graph={create_graph}", got, want)
    x = xs[0].to(device)  # a Hessian takes as many collectives as the input has numbers, on every rank
    plain, vectorized = (torch.autograd.functional.hessian(loss, x, vectorize=v) for v in (False, True))
    close("a vectorized Hessian", vectorized, plain)
    count = 2 + rank
    refused = ""
    try:
        torch.autograd.grad(loss(x.requires_grad_()), x, vectors.new_ones(count), is_grads_batched=True)
    except ValueError as error:
        refused = str(error)
    assert f"expected vmap of one size on every rank, got {count} on this rank" in refused


def check_partial_double_backward(impl: str, device: str) -> None:
    """Ranks that differentiate twice by different parameters still match collectives, and x gets its gradient."""
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


def check_transforms(stats_mode: str, impl: str, device: str) -> None:
    """Forward mode against finite differences across ranks; torch.func's gradients and products against autograd's."""
    xs, dys = random_inputs([3, 0, 2], [(3,), (5,), (4,)], torch.float64)
    rank = dist.get_rank()
    layer = random_layer(stats_mode=stats_mode, impl=impl, device=device, dtype=torch.float64)
    x, dy = xs[rank].to(device), dys[rank].to(device)
    tangent = x.cos()
    parameters: dict[str, Tensor] = dict(layer.named_parameters())
    moves = {name: p.detach().sin() for name, p in parameters.items()}

    def moved(by: Tensor | float) -> Tensor:
        values = {name: p + by * moves[name] for name, p in parameters.items()}
        return torch.func.functional_call(layer, values, (x + by * tangent,))

    # The same number of steps on every rank, with data or without: each step is a collective.
    step = 1e-5
    nowhere = torch.zeros((), dtype=x.dtype, device=x.device)
    y, along = torch.func.jvp(moved, (nowhere,), (torch.ones_like(nowhere),))[:2]
    close("y", y, moved(0))
    close("jvp", along, (moved(step) - moved(-step)) / (2 * step), rtol=1e-6, atol=1e-7)
    with torch.autograd.forward_ad.dual_level():
        dual = layer(torch.autograd.forward_ad.make_dual(x, tangent))
        got = torch.autograd.forward_ad.unpack_dual(dual).tangent
    close("forward mode", got, torch.func.jvp(layer, (x,), (tangent,))[1])

    def loss(x: Tensor, parameters: dict[str, Tensor]) -> Tensor:
        return (torch.func.functional_call(layer, parameters, (x,)) ** 3 * dy).sum()

    leaf = x.clone().requires_grad_()
    first = torch.autograd.grad(loss(leaf, parameters), (leaf, *parameters.values()), create_graph=True)
    gradient, by_parameters = torch.func.grad(loss, (0, 1))(x, parameters)
    for name, got, want in zip(("x", *parameters), (gradient, *by_parameters.values()), first, strict=True):
        close(f"gradient of {name}", got, want, rtol=1e-9, atol=1e-9)
    (want,) = torch.autograd.grad((first[0] * tangent).sum(), leaf)
    still = {name: 0 * p for name, p in parameters.items()}
    got = torch.func.jvp(torch.func.grad(loss), (x, parameters), (tangent, still))[1]
    close("forward over reverse", got, want, rtol=1e-9, atol=1e-9)

    layer.reset_running_stats()
    torch.func.grad(lambda x: layer(x).sum())(x)
    once = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    layer.reset_running_stats()
    layer(x)
    for name, buffer in layer.named_buffers():
        close(name, once[name], buffer)


def check_vmap(impl: str, device: str) -> None:
    """A mapped layer equals the layer on each input, or with each weight; an unsupported map raises on all ranks."""
    rank = dist.get_rank()
    xs = torch.randn(4, (3, 0)[rank], CHANNELS, 2, dtype=torch.float64, device=device)
    layer = random_layer(stats_mode="N", impl=impl, device=device, dtype=torch.float64, track_running_stats=False)
    close("y", torch.func.vmap(layer)(xs), torch.stack([layer(x) for x in xs]))

    def with_weight(weight: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight}, (xs[0],))

    weights = torch.rand(3, CHANNELS, dtype=torch.float64, device=device)
    close("y by weight", torch.func.vmap(with_weight)(weights), torch.stack([with_weight(w) for w in weights]))
    statistics = random_layer(stats_mode="N", impl=impl, device=device, dtype=torch.float64)
    with expect_error(ValueError, "expected no running statistics under vmap"):
        torch.func.vmap(statistics)(xs)
    for size, average in ((1 + rank, "1.5"), (2 * rank, "1")):
        words = f"expected vmap of one size on every rank, got {size} on this rank and {average} on average"
        with expect_error(ValueError, words, collectives=1):
            torch.func.vmap(layer)(xs[:size])
    numbers = (3 * CHANNELS * 2, 0)[rank]  # the empty rank's Jacobian maps over none
    words = f"expected vmap of one size on every rank, got {numbers} on this rank and {3 * CHANNELS:g} on average"
    for jacobian in (torch.func.jacrev, torch.func.jacfwd):
        with expect_error(ValueError, words, collectives=2):  # of the statistics, and of the sizes
            jacobian(layer)(xs[0])


def check_partial_gradients(impl: str, device: str) -> None:
    """Each tensor that needs a gradient gets the right one; the others get none."""
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
