"""Running statistics: equal on all ranks, averaged by the momentum, applied in eval mode, and layers without them."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial

import torch
import torch.distributed as dist
import torch.nn.functional as F

from ...modes import STATS_MODES
from ..oracle import train_step
from ..watch import Watch
from .parts import CHANNELS, DTYPES, Case, affine_of, check_step, close, random_inputs, random_layer


def cases() -> Iterator[Case]:
    """Families ``running statistics`` and ``options``."""
    yield Case("running statistics: equal bit for bit, alternating batches", 4, check_running_stats)
    yield Case("running statistics: cumulative average", 3, check_cumulative_average)
    yield Case("running statistics: between a pass in eval mode and its backward pass", 2, check_eval_then_train)
    yield Case("running statistics: a change that autograd sees", 2, check_version)
    yield Case("options: affine=False", 2, partial(check_step, "N", [2, 3], affine=False))
    yield Case("options: track_running_stats=False", 2, check_untracked)
    yield Case("options: eval mode", 2, check_eval)


def check_running_stats(impl: str, device: str) -> None:
    """Running statistics are the same to the last bit on all ranks, through steps in which all are empty."""
    rank = dist.get_rank()
    steps = [[2, 3, 1, 4], [0, 3, 0, 1], [0, 0, 0, 0], [5, 0, 0, 0], [1, 1, 1, 1], [0, 0, 2, 7]]
    for stats_mode in STATS_MODES:
        layer = random_layer(stats_mode=stats_mode, impl=impl, device=device)
        mean, var = torch.zeros(CHANNELS).double(), torch.ones(CHANNELS).double()
        for seed, sizes in enumerate(steps):
            xs, dys = random_inputs(sizes, [(2 + r, 3) for r in range(4)], torch.float32, seed)
            layer(xs[rank].to(device))
            if sum(sizes):
                want = train_step(xs, dys, *affine_of(layer), stats_mode)
                mean, var = 0.9 * mean + 0.1 * want.mean, 0.9 * var + 0.1 * want.unbiased_var
        close("running_mean", layer.running_mean, mean)
        close("running_var", layer.running_var, var)
        assert layer.num_batches_tracked == len(steps) - 1
        for name, buffer in layer.named_buffers():
            copies = [torch.empty_like(buffer.cpu()) for _ in range(4)]
            dist.all_gather(copies, buffer.cpu())
            assert all(torch.equal(copies[0], other) for other in copies), f"{name} differs between ranks"


def check_eval_then_train(impl: str, device: str) -> None:
    """The backward pass of eval mode uses the statistics of its forward pass, even after a training step."""
    layer = random_layer(impl=impl, device=device).eval()
    x = torch.randn(4, CHANNELS, 3, device=device, requires_grad=True)
    (want,) = torch.autograd.grad(layer(x).pow(2).sum(), x)
    loss = layer(x).pow(2).sum()
    layer.train()(x.detach() * 100)
    (got,) = torch.autograd.grad(loss, x)
    close("dx of the pass in eval mode", got, want)


def check_version(impl: str, device: str) -> None:
    """A step counts as a change of the buffers: autograd rejects tensors saved from them before."""
    for momentum in (0.1, None):
        layer = random_layer(momentum=momentum, impl=impl, device=device)
        before = {name: buffer._version for name, buffer in layer.named_buffers()}
        layer(torch.randn(4, CHANNELS, 3, device=device))
        assert all(buffer._version > before[name] for name, buffer in layer.named_buffers()), f"momentum={momentum}"


def check_cumulative_average(impl: str, device: str) -> None:
    """momentum=None gives the plain average over the steps with data."""
    rank = dist.get_rank()
    layer = random_layer(momentum=None, stats_mode="exact", impl=impl, device=device)
    means, variances = [], []
    for seed, sizes in enumerate(([2, 0, 1], [0, 0, 0], [3, 3, 3], [0, 4, 0])):
        xs, dys = random_inputs(sizes, [(4,)] * 3, torch.float32, seed)
        with Watch() as watch:
            layer(xs[rank].to(device))
        assert not watch.host_reads
        want = train_step(xs, dys, *affine_of(layer), "exact")
        if want.elements:
            means.append(want.mean)
            variances.append(want.unbiased_var)
    close("running_mean", layer.running_mean, torch.stack(means).mean(0))
    close("running_var", layer.running_var, torch.stack(variances).mean(0))
    assert layer.num_batches_tracked == 3


def check_untracked(impl: str, device: str) -> None:
    """Without running statistics, training synchronizes; eval uses the rank's own batch and communicates nothing."""
    rank = dist.get_rank()
    layer = random_layer(track_running_stats=False, stats_mode="exact", impl=impl, device=device)
    xs, dys = random_inputs([2, 3], [(4,), (4,)], torch.float32)
    assert layer.running_mean is None
    close("y in training", layer(xs[rank].to(device)), train_step(xs, dys, *affine_of(layer), "exact").y[rank])
    if rank == 0:  # alone
        with Watch() as watch:
            y = layer.eval()(xs[0].to(device))
        assert not watch.collectives
        close("y in eval", y, train_step(xs[:1], dys[:1], *affine_of(layer), "exact").y[0])
        assert layer(xs[0][:0].to(device)).shape == (0, CHANNELS, 4)


def check_eval(impl: str, device: str) -> None:
    """Eval mode applies the running statistics, changes nothing and communicates nothing."""
    rank = dist.get_rank()
    for dtype, param_dtype in [*DTYPES, (torch.float64, torch.float32), (torch.float32, torch.float64)]:
        layer = random_layer(impl=impl, device=device, dtype=param_dtype)
        xs, _ = random_inputs([2, 3], [(4, 2), (4, 2)], dtype)
        layer(xs[rank].to(device))
        before = copy.deepcopy(layer.state_dict())
        if rank == 0:
            layer.eval()
            with Watch() as watch:
                y = layer(xs[0].to(device))
            assert not watch.collectives
            mean, var, _, gamma, beta = (t.double().cpu() for t in (*layer.buffers(), *layer.parameters()))
            close("y", y, F.batch_norm(xs[0].double(), mean, var, gamma, beta))
            assert layer(xs[0][:0].to(device)).shape == (0, CHANNELS, 4, 2)
        for name, tensor in layer.state_dict().items():
            assert torch.equal(tensor, before[name]), name
