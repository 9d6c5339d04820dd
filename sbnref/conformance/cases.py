"""What the layer promises, case by case. A check runs on every rank of its world and raises where a promise is broken.

Every rank makes the inputs of all ranks from the same seed, so each knows by itself what the whole group should get.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from ..composed import composed_sync_batch_norm
from ..functional import sync_batch_norm
from ..modes import STATS_MODES, fixed_divisor, rank_weight
from ..module import SyncBatchNorm
from .accuracy import INPUTS, measure_accuracy
from .oracle import elements_per_channel, over, train_step
from .watch import Watch

CHANNELS = 5
assert_close = torch.testing.assert_close


@dataclass(frozen=True)
class Case:
    """One promise.

    Attributes:
        name: unique, with the family before the first colon.
        world_size: how many ranks it takes.
        check: runs on each rank with the name of an implementation and a device; raises AssertionError if broken.
    """

    name: str
    world_size: int
    check: Callable[[str, str], Any]


def cases() -> list[Case]:
    """All of them."""
    return [Case(name, world_size, check) for name, world_size, check in _cases()]


def _cases() -> Iterator[tuple[str, int, Callable[[str, str], Any]]]:
    for world_size, stats_mode in itertools.product((1, 2, 3, 4), STATS_MODES):
        for kind, sizes in batch_sizes(world_size).items():
            yield (
                f"batches: {kind}, {stats_mode}, {world_size} ranks",
                world_size,
                partial(check_step, stats_mode, sizes),
            )
    for stats_mode, (dtype, param_dtype) in itertools.product(STATS_MODES, DTYPES):
        check = partial(check_step, stats_mode, [3, 0, 5], dtype=dtype, param_dtype=param_dtype)
        yield f"dtypes: {name_of(dtype)} input, {name_of(param_dtype)} parameters, {stats_mode}", 3, check
    for stats_mode, (kind, spatial) in itertools.product(STATS_MODES, SPATIAL.items()):
        yield f"shapes: {kind}, {stats_mode}", 2, partial(check_step, stats_mode, [2, 3], spatial=spatial)
    for layout in LAYOUTS:
        yield f"layouts: {layout}", 2, partial(check_layout, layout)
    for name in INPUTS:
        yield f"accuracy: {name}", 2, partial(check_accuracy, name)
    for stats_mode in STATS_MODES:
        yield f"second derivatives: {stats_mode}", 3, partial(check_double_backward, stats_mode)
    yield "second derivatives: of something else on every rank", 2, check_partial_double_backward
    yield "running statistics: equal bit for bit, alternating batches", 4, check_running_stats
    yield "running statistics: cumulative average", 3, check_cumulative_average
    yield "options: affine=False", 2, partial(check_step, "N", [2, 3], affine=False)
    yield "options: track_running_stats=False", 2, check_untracked
    yield "options: eval mode", 2, check_eval
    yield "options: gradients of some inputs only", 2, check_partial_gradients
    yield "groups: a subgroup of the world", 4, check_subgroup
    yield "groups: device meshes", 4, check_device_mesh
    yield "costs: one collective each way, no word with the host, nothing saved but the input", 2, check_costs
    yield "training: DistributedDataParallel equals one process on the whole batch", 3, check_training
    yield "extremes: NaN and Inf", 2, check_non_finite
    yield "refusals: before anything is communicated or changed", 2, check_refusals
    yield "refusals: one value per channel in a group of one", 1, check_single_value


def batch_sizes(world_size: int) -> dict[str, list[int]]:
    """Each rank's batch size, for every way in which batches differ."""
    kinds = {
        "equal": [3] * world_size,
        "ragged": [4, 1, 2, 3][:world_size],
        "some empty": [3, 0, 2, 0][:world_size],
        "all but one empty": [0] * (world_size - 1) + [5],
        "all empty": [0] * world_size,
    }
    return kinds if world_size > 1 else {kind: kinds[kind] for kind in ("equal", "all empty")}


DTYPES = [
    (torch.float32, torch.float32),
    (torch.float64, torch.float64),
    (torch.float16, torch.float32),
    (torch.float16, torch.float16),
    (torch.bfloat16, torch.float32),
    (torch.bfloat16, torch.bfloat16),
]

SPATIAL: dict[str, list[tuple[int, ...]]] = {  # of rank 0 and rank 1
    "2 dimensions": [(), ()],
    "3 dimensions, lengths differ": [(7,), (4,)],
    "4 dimensions, sizes differ": [(3, 5), (6, 2)],
    "4 dimensions, one spatially empty": [(3, 5), (0, 4)],
    "5 dimensions, sizes differ": [(2, 3, 4), (1, 5, 3)],
    "6 dimensions": [(2, 1, 3, 2), (2, 1, 3, 2)],
}


def _strided(x: Tensor) -> Tensor:
    """The same values with a gap after every element."""
    return torch.stack([x, x], -1)[..., 0]


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {  # each makes (N, C, D, H, W)-shaped values lie differently
    "channels last": lambda x: x[:, :, 0].contiguous(memory_format=torch.channels_last),
    "channels last 3d": lambda x: x.contiguous(memory_format=torch.channels_last_3d),
    "permuted": lambda x: x.permute(4, 1, 0, 3, 2),
    "batch innermost": lambda x: x.movedim(0, -1).contiguous().movedim(-1, 0),
    "strided": _strided,
    "every other channel": lambda x: x.repeat_interleave(2, dim=1)[:, ::2],
    "expanded": lambda x: x[:, :, :1, :1].expand(-1, -1, 3, 4, -1),
    "unaligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
}


def name_of(dtype: torch.dtype) -> str:
    """'float32' for torch.float32."""
    return str(dtype).removeprefix("torch.")


def close(name: str, got: Tensor | None, want: Tensor, **tolerance: Any) -> None:
    """Compare to the precision of what was computed; the message says what and on which rank."""
    message = f"{name} on rank {dist.get_rank()}"
    assert got is not None, f"{message} is None"
    want = want.to(got.device, got.dtype)
    assert_close(got, want, msg=lambda text: f"{message}: {text}", **tolerance)


def random_inputs(sizes: list[int], spatial: list[tuple[int, ...]], dtype: torch.dtype, seed: int = 0) -> Any:
    """Each rank's input and upstream gradient; means and spreads differ by rank and channel."""
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
    """A layer whose parameters are not ones and zeros."""
    layer = SyncBatchNorm(CHANNELS, **options)
    if layer.affine:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            layer.weight.copy_(torch.rand(CHANNELS, generator=generator) + 0.5)
            layer.bias.copy_(torch.randn(CHANNELS, generator=generator))
    return layer


def affine_of(layer: SyncBatchNorm) -> tuple[Tensor, Tensor]:
    """gamma and beta, ones and zeros where the layer has none."""
    if layer.affine:
        return layer.weight, layer.bias
    return torch.ones(CHANNELS), torch.zeros(CHANNELS)


def compare_step(layer: SyncBatchNorm, xs: list[Tensor], dys: list[Tensor], rank: int) -> None:
    """Run a training step on this rank's share and hold all it gives to the oracle. The layer's momentum is 0.1."""
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
    """One training step of the layer equals the definition: outputs, gradients, running statistics."""
    xs, dys = random_inputs(sizes, spatial or [(4, 3)] * len(sizes), dtype)
    layer = random_layer(affine=affine, stats_mode=stats_mode, impl=impl, device=device, dtype=param_dtype)
    compare_step(layer, xs, dys, dist.get_rank())


def check_layout(layout: str, impl: str, device: str) -> None:
    """Strides change nothing, and the output has the input's memory format; the gradient comes in another one."""
    contiguous, _ = random_inputs([2, 3], [(2, 3, 4), (2, 3, 4)], torch.float32)
    xs = [LAYOUTS[layout](x) for x in contiguous]
    dys = [torch.randn(x.shape, generator=torch.Generator().manual_seed(2)) for x in xs]
    want = train_step(xs, dys, torch.ones(CHANNELS), torch.zeros(CHANNELS), "exact")
    rank = dist.get_rank()
    x = LAYOUTS[layout](contiguous[rank].to(device))
    leaf = x.detach().requires_grad_()
    y = sync_batch_norm(leaf, None, None, training=True, stats_mode="exact", impl=impl)
    close("y", y, want.y[rank])
    for memory_format in (torch.contiguous_format, torch.channels_last, torch.channels_last_3d):
        if x.dim() == {torch.channels_last: 4, torch.channels_last_3d: 5}.get(memory_format, x.dim()):
            kept = not x.is_contiguous(memory_format=memory_format) or y.is_contiguous(memory_format=memory_format)
            assert kept, f"{memory_format} input gave an output with strides {y.stride()}"
    (dx,) = torch.autograd.grad(y, leaf, dys[rank].to(device), retain_graph=True)
    close("dx", dx, want.dx[rank])

    ones = [torch.ones(()).expand(x.shape) for x in xs]  # what y.sum().backward() sends
    want = train_step(xs, ones, torch.ones(CHANNELS), torch.zeros(CHANNELS), "exact")
    (dx,) = torch.autograd.grad(y.sum(), leaf)
    close("dx of a sum", dx, want.dx[rank])


def check_accuracy(name: str, impl: str, device: str) -> dict[str, dict[str, float]]:
    """No quantity is further from float64 than rounding allows."""
    figures = measure_accuracy(name, impl, device)
    for quantity, figure in figures.items():
        assert figure["layer"] <= figure["allowed"], f"{name}: {quantity} on rank {dist.get_rank()} is off: {figure}"
    return figures


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


def check_cumulative_average(impl: str, device: str) -> None:
    """momentum=None gives the plain average of the steps that had data."""
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
    """Without running statistics training synchronizes, and eval uses the rank's own batch and says nothing."""
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
    """Eval mode applies the running statistics, changes nothing and says nothing."""
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


def check_subgroup(impl: str, device: str) -> None:
    """Ranks of a subgroup synchronize among themselves; the others may do something else meanwhile."""
    evens, odd = dist.new_group([0, 2]), dist.new_group([3])
    rank = dist.get_rank()
    xs, dys = random_inputs([2, 4, 3, 2], [(4,)] * 4, torch.float32)
    if rank in (0, 2):
        layer = random_layer(group=evens, stats_mode="default", impl=impl, device=device)
        compare_step(layer, xs[::2], dys[::2], rank // 2)
    elif rank == 3:
        layer = random_layer(group=odd, stats_mode="N", impl=impl, device=device)
        compare_step(layer, xs[3:], dys[3:], 0)
    else:
        for group in (evens, odd):
            layer = random_layer(group=group, impl=impl, device=device)
            with refusal(ValueError, "rank 1 is not a member"):
                layer(xs[rank].to(device))


def check_device_mesh(impl: str, device: str) -> None:
    """A mesh of one dimension is a group; of a mesh of two, one dimension has to be named."""
    rank = dist.get_rank()
    xs, dys = random_inputs([2, 4, 0, 3], [(4,)] * 4, torch.float32)
    mesh_device = "cpu" if dist.get_backend() == "gloo" else torch.device(device).type
    layer = random_layer(group=init_device_mesh(mesh_device, (4,)), stats_mode="N", impl=impl, device=device)
    compare_step(layer, xs, dys, rank)

    mesh = init_device_mesh(mesh_device, (2, 2), mesh_dim_names=("replica", "batch"))
    row = slice(0, 2) if rank < 2 else slice(2, 4)
    layer = random_layer(group=mesh["batch"], stats_mode="exact", impl=impl, device=device)
    compare_step(layer, xs[row], dys[row], rank % 2)
    layer = random_layer(group=mesh, impl=impl, device=device)
    with refusal(ValueError, "one-dimensional DeviceMesh, got one of 2 dimensions"):
        layer(xs[rank].to(device))

    layer = random_layer(group=DeviceMesh(mesh_device, [0, 1, 2]), stats_mode="N", impl=impl, device=device)
    if rank == 3:
        with refusal(ValueError, "rank 3 is not a member"):
            layer(xs[rank].to(device))
    else:
        compare_step(layer, xs[:3], dys[:3], rank)


def check_costs(impl: str, device: str) -> None:
    """A step is two collectives of 2C + 2 and 2C float64, and keeps its input and O(C) numbers for the backward."""
    for sizes, stats_mode, momentum in itertools.product(([8, 4], [8, 0]), STATS_MODES, (0.1, None)):
        xs, dys = random_inputs(sizes, [(9, 9), (9, 9)], torch.float16)
        x = xs[dist.get_rank()].to(device).requires_grad_()
        dy = dys[dist.get_rank()].to(device)
        layer = random_layer(stats_mode=stats_mode, momentum=momentum, impl=impl, device=device)
        saved: list[Tensor] = []

        def remember(tensor: Tensor) -> Tensor:
            saved.append(tensor)  # noqa: B023
            return tensor

        with Watch() as forward, torch.autograd.graph.saved_tensors_hooks(remember, lambda t: t):
            y = layer(x)
        with Watch() as backward:
            y.backward(dy)
        assert forward.collectives == [("all_reduce", 2 * CHANNELS + 2, torch.float64)], forward.collectives
        assert backward.collectives == [("all_reduce", 2 * CHANNELS, torch.float64)], backward.collectives
        assert not forward.host_reads + backward.host_reads
        others = [t for t in saved if t.data_ptr() != x.data_ptr() or x.numel() == 0]
        assert sum(t.numel() for t in others) <= 8 * CHANNELS, [tuple(t.shape) for t in saved]


def check_training(impl: str, device: str) -> None:
    """Steps under DistributedDataParallel, mode 'exact', follow one process that trains on the whole batch."""
    rank, world_size = dist.get_rank(), dist.get_world_size()

    def network(norm: Callable[[int], nn.Module]) -> nn.Module:
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3),
            norm(6),
            nn.ReLU(),
            nn.Conv2d(6, CHANNELS, 3),
            norm(CHANNELS),
            nn.Flatten(),
            nn.Linear(16 * CHANNELS, 2),
        )

    alone = network(nn.BatchNorm2d).double()
    together = network(partial(SyncBatchNorm, stats_mode="exact", impl=impl)).double().to(device)
    together.load_state_dict(alone.state_dict(), strict=True)
    wrapped = DistributedDataParallel(together)
    optimizers = [torch.optim.SGD(m.parameters(), 1e-3, momentum=0.9) for m in (alone, wrapped)]

    generator = torch.Generator().manual_seed(4)
    for step in range(6):
        sizes = [[4, 2, 3], [5, 0, 2], [0, 0, 6]][step % 3]
        batch = torch.randn(sum(sizes), 1, 8, 8, generator=generator).double()
        target = torch.randn(sum(sizes), 2, generator=generator).double()
        for optimizer in optimizers:
            optimizer.zero_grad()
        ((alone(batch) - target) ** 2).sum().backward()
        mine, my_target = batch.split(sizes)[rank].to(device), target.split(sizes)[rank].to(device)
        # DistributedDataParallel averages gradients over ranks: the factor makes the average the sum
        (((wrapped(mine) - my_target) ** 2).sum() * world_size).backward()
        for optimizer in optimizers:
            optimizer.step()
    for (name, got), want in zip(together.state_dict().items(), alone.state_dict().values(), strict=True):
        close(name, got, want, rtol=1e-6, atol=1e-9)


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


class refusal:
    """Passes if the block raises ``error`` with ``text`` in its message, having communicated nothing."""

    def __init__(self, error: type[Exception], text: str) -> None:
        self.error, self.text, self.watch = error, text, Watch()

    def __enter__(self) -> None:
        self.watch.__enter__()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
        self.watch.__exit__(kind, error, trace)
        assert kind is not None, f"expected a {self.error.__name__} with {self.text!r}, got no error"
        assert isinstance(error, self.error), f"expected a {self.error.__name__}, got {error!r}"
        assert self.text in str(error), f"expected {self.text!r} in the message, got {error}"
        assert not self.watch.collectives
        return True


def check_refusals(impl: str, device: str) -> None:
    """Bad input is refused by name before anything is communicated or changed."""
    layer = random_layer(impl=impl, device=device)
    before = copy.deepcopy(layer.state_dict())
    x = torch.randn(2, CHANNELS, 3, device=device)
    bad_inputs = [
        (ValueError, "at least 2 dimensions (N, C, *), got shape (5,)", x[0, :, 0]),
        (ValueError, "input of 5 channels (N, C, *), got shape (2, 4, 3)", x[:, :4]),
        (ValueError, "at least 1 channel", x[:, :0]),
        (TypeError, "torch.int64", x.long()),
        (TypeError, "torch.complex64", x.to(torch.complex64)),
        (TypeError, "to be a Tensor, got list", x.tolist()),
        (TypeError, "a dense input, got torch.sparse_coo", x.to_sparse()),
    ]
    for error, text, bad in bad_inputs:
        with refusal(error, text):
            layer(bad)
    bad_choices: list[tuple[dict[str, Any], str]] = [
        (dict(stats_mode="n"), "('default', 'N', 'exact'), got 'n'"),
        (dict(impl="gpu"), "got 'gpu'"),
    ]
    for choice, text in bad_choices:
        with refusal(ValueError, text):
            SyncBatchNorm(CHANNELS, **choice)
        with refusal(ValueError, text):
            sync_batch_norm(x, None, None, training=True, **choice)
    mean, var = torch.zeros(CHANNELS, device=device), torch.ones(CHANNELS, device=device)
    bad_arguments: list[tuple[dict[str, Any], str]] = [
        (dict(running_var=None), "running_mean and running_var both or neither"),
        (dict(running_mean=mean[:3]), "running_mean of shape (C,) = (5,)"),
        (dict(momentum=None), "num_batches_tracked"),
        (dict(eps=0), "a positive eps to take statistics with, got 0"),
        (dict(bias=mean.to("meta")), f"on the input's device {x.device}, got it on meta"),
    ]
    for arguments, text in bad_arguments:
        with refusal(ValueError, text):
            sync_batch_norm(
                x, **{"running_mean": mean, "running_var": var, "training": True, "impl": impl, **arguments}
            )
    wrong_types: list[tuple[dict[str, Any], str]] = [
        (dict(eps="exact"), "eps to be a number, got 'exact'"),
        (dict(momentum=True), "momentum to be a number, got True"),
        (dict(num_batches_tracked=torch.zeros(1, device=device)), "dtype torch.int64"),
        (dict(num_batches_tracked=torch.tensor(0, device="meta")), "on meta"),
    ]
    for arguments, text in wrong_types:
        with refusal(TypeError, text):
            sync_batch_norm(x, mean, var, training=True, impl=impl, **arguments)
    with refusal(TypeError, "weight of one of the dtypes"):
        sync_batch_norm(x, mean, var, mean.long(), mean, training=True, impl=impl)
    with refusal(TypeError, "ProcessGroup or a one-dimensional DeviceMesh, got list"):
        random_layer(group=[0, 1], impl=impl, device=device)
    with refusal(TypeError, "ProcessGroup or a one-dimensional DeviceMesh, got list"):
        sync_batch_norm(x, None, None, training=True, impl=impl, group=[0, 1])  # type: ignore[arg-type]
    for name, tensor in layer.state_dict().items():
        assert torch.equal(tensor, before[name]), f"{name} was changed"


def check_single_value(impl: str, device: str) -> None:
    """One value has no spread to normalize by, unless other ranks bring more."""
    layer = random_layer(impl=impl, device=device)
    with refusal(ValueError, "more than 1 value per channel"):
        layer(torch.randn(1, CHANNELS, device=device))
    assert layer.num_batches_tracked == 0
