"""The other layers in docs/peers.md: those for PyTorch are run, those of other frameworks evaluated as formulas."""

import pytest
import torch
import torch.distributed as dist
from torch import nn

from benchmarks.suites import fairscale
from sbnref.conformance.cases.parts import CHANNELS, close, random_inputs
from sbnref.conformance.oracle import train_step
from sbnref.conformance.watch import Watch
from sbnref.interop.peers import MMCVSyncBatchNorm, NaiveSyncBatchNorm

pytestmark = pytest.mark.slow


def step(layer: nn.Module, sizes: list[int], offset: float = 0.0):
    """Train a step on this rank's share; return the output, the gradient, and the oracle's output and gradient."""
    xs, dys = random_inputs(sizes, [(4, 3)] * len(sizes), torch.float64)
    xs = [(x * (0.01 if offset else 1) + offset).float() for x in xs]
    dys = [dy.float() for dy in dys]
    rank = dist.get_rank()
    stats_mode = getattr(layer, "stats_mode", "") or "default"
    want = train_step(xs, dys, torch.ones(CHANNELS), torch.zeros(CHANNELS), stats_mode)
    x = xs[rank].requires_grad_()
    y = layer(x)
    y.backward(dys[rank])
    return y.detach(), x.grad, want.y[rank], want.dx[rank]


def error(got: torch.Tensor, want: torch.Tensor) -> float:
    """Return the largest error over all ranks, relative to the largest value."""
    worst = torch.zeros(2, dtype=torch.float64)
    if want.numel():
        worst = torch.stack([(got - want).abs().max(), want.abs().max()]).double()
    dist.all_reduce(worst, dist.ReduceOp.MAX)
    return (worst[0] / worst[1]).item()


def mmcv_forward_and_backward() -> None:
    for stats_mode in ("default", "N"):
        for sizes in ([3, 3, 3, 3], [4, 1, 2, 3], [3, 0, 2, 4]):
            y, dx, want_y, want_dx = step(MMCVSyncBatchNorm(CHANNELS, stats_mode), sizes)
            close("mmcv's forward", y, want_y, rtol=1e-4, atol=1e-5)
            derivative_of_forward = sizes == [3, 3, 3, 3] or (stats_mode == "default" and 0 not in sizes)
            off = error(dx, want_dx)
            assert off < 1e-5 if derivative_of_forward else off > 5e-3, (stats_mode, sizes, off)


def test_mmcv_backward_is_not_the_derivative_of_its_forward_with_unequal_batches(world):
    world(4).run(mmcv_forward_and_backward)


@pytest.mark.ranks(4)
def test_mmcv_running_variance_differs_between_ranks_with_unequal_batches():
    layer = MMCVSyncBatchNorm(CHANNELS, "N")
    step(layer, [4, 1, 2, 3])
    copies = [torch.empty_like(layer.running_var) for _ in range(4)]
    dist.all_gather(copies, layer.running_var)
    assert max(float((copy - copies[0]).abs().max()) for copy in copies) > 1e-3


def collectives_and_memory(make, dtype) -> tuple[int, int, float]:
    """Return each pass's collectives, and the bytes saved for the backward pass relative to the input's."""
    xs, dys = random_inputs([8, 8], [(16, 16)] * 2, dtype)
    x = xs[dist.get_rank()].requires_grad_()
    layer = make(CHANNELS)
    saved: dict[int, int] = {}

    def remember(t: torch.Tensor) -> torch.Tensor:
        saved[t.data_ptr()] = t.numel() * t.itemsize
        return t

    with Watch() as forward, torch.autograd.graph.saved_tensors_hooks(remember, lambda t: t):
        y = layer(x)
    with Watch() as backward:
        y.backward(dys[dist.get_rank()])
    return len(forward.collectives), len(backward.collectives), sum(saved.values()) / (x.numel() * x.itemsize)


@pytest.mark.parametrize(
    ("make", "dtype", "forward", "backward", "memory"),
    [
        (MMCVSyncBatchNorm, torch.float16, 2, 2, 2),
        (NaiveSyncBatchNorm, torch.float32, 1, 1, None),
        (fairscale, torch.float32, 2, 1, None),
    ],
)
def test_collectives_and_memory(world, make, dtype, forward, backward, memory):
    *collectives, saved = world(2).run(collectives_and_memory, make, dtype)[0]
    assert collectives == [forward, backward]
    assert memory is None or saved == pytest.approx(memory, abs=0.1)


@pytest.mark.ranks(2)
def test_one_pass_variance_cancels_at_a_large_mean():
    for make in (NaiveSyncBatchNorm, fairscale):
        y, _, want_y, _ = step(make(CHANNELS), [3, 3], offset=1e3)
        assert error(y.nan_to_num(torch.inf), want_y) > 0.1


@pytest.mark.ranks(2)
def test_empty_ranks_and_cpu_tensors():
    with pytest.raises(ValueError, match="expected input tensor to be on GPU"):  # with a process group
        nn.SyncBatchNorm(CHANNELS)(torch.randn(4, CHANNELS))
    sizes = [3, 0]
    y, *_ = step(fairscale(CHANNELS), sizes)
    assert not y.isfinite().all() or y.numel() == 0
    y, _, want, _ = step(NaiveSyncBatchNorm(CHANNELS, "N"), sizes)
    close("detectron2's N", y, want, rtol=1e-4, atol=1e-5)
    if dist.get_rank() == 1:
        with pytest.raises(AssertionError, match="does not support a batch of size 0"):
            NaiveSyncBatchNorm(CHANNELS)(torch.zeros(0, CHANNELS, 4, 3))


# Layers outside PyTorch, as formulas from their sources over the inputs of all ranks.
EQUAL, RAGGED, WITH_AN_EMPTY = [3, 3, 3, 3], [4, 1, 2, 3], [3, 0, 2, 4]


def inputs_and_oracle(sizes: list[int], stats_mode: str):
    xs, dys = random_inputs(sizes, [(4, 3)] * len(sizes), torch.float64)
    return xs, dys, train_step(xs, dys, torch.ones(CHANNELS), torch.zeros(CHANNELS), stats_mode)


def per_channel(x: torch.Tensor) -> torch.Tensor:
    """Reshape (N, C, H, W) to (C, m)."""
    return x.transpose(0, 1).flatten(1)


def flax(xs: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and variance from the averages over devices of E[x] and E[x²]."""
    mean, square = (torch.stack([per_channel(x**power).mean(1) for x in xs]).mean(0) for power in (1, 2))
    return mean, (square - mean**2).clamp(min=0)


def keras_and_paddle(xs: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return mean and variance from sums of x, x² and counts over devices, before Keras clips the variance at 0."""
    count = sum(per_channel(x).shape[1] for x in xs)
    mean, square = (sum(per_channel(x**power).sum(1) for x in xs) / count for power in (1, 2))
    return mean, square - mean**2


@pytest.mark.parametrize("sizes", [EQUAL, RAGGED])
def test_flax_averages_devices_as_mode_default(sizes):
    xs, _, want = inputs_and_oracle(sizes, "default")
    mean, var = flax(xs)
    torch.testing.assert_close(mean, want.mean)
    torch.testing.assert_close(var, want.var)
    exact = inputs_and_oracle(sizes, "exact")[2]
    off = ((var - exact.var).abs() / exact.var).max()
    assert off < 1e-9 if sizes == EQUAL else off > 1e-2


@pytest.mark.parametrize("sizes", [EQUAL, RAGGED, WITH_AN_EMPTY])
def test_keras_and_paddle_weigh_elements_as_mode_exact(sizes):
    xs, _, want = inputs_and_oracle(sizes, "exact")
    torch.testing.assert_close(keras_and_paddle(xs), (want.mean, want.var))


def test_paddle_backward_is_not_the_derivative_of_its_forward_with_unequal_batches():
    """PaddlePaddle divides the sums over devices by the number of devices times the local count."""
    for sizes in (EQUAL, RAGGED):
        xs, dys, want = inputs_and_oracle(sizes, "exact")
        invstd = (want.var + 1e-5).rsqrt()
        xhats = [(per_channel(x) - want.mean[:, None]) * invstd[:, None] for x in xs]
        gs = [per_channel(dy) for dy in dys]
        a = sum(g.sum(1) for g in gs)[:, None]
        b = sum((g * xhat).sum(1) for g, xhat in zip(gs, xhats, strict=True))[:, None]
        pairs = zip(gs, xhats, strict=True)
        dxs = [invstd[:, None] * (g - (a + b * xhat) / (len(xs) * g.shape[1])) for g, xhat in pairs]
        off = max(float((dx - per_channel(want_dx)).abs().max()) for dx, want_dx in zip(dxs, want.dx, strict=True))
        assert off < 1e-9 if sizes == EQUAL else off > 5e-3


def test_outside_pytorch_the_variance_cancels_at_a_large_mean():
    x = torch.randn(8, 64, 16, 16, generator=torch.Generator().manual_seed(0)) * 0.01 + 1e3
    true = per_channel(x.double()).var(1, correction=0)
    for _, var in (flax([x]), keras_and_paddle([x])):
        assert ((var.clamp(min=0) - true).abs() / true).median() > 0.5
    assert keras_and_paddle([x])[1].add(1e-5).rsqrt().isnan().any()  # not clipped in PaddlePaddle
