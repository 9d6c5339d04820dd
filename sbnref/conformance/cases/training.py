"""Training: the cost of a step, and many steps against one process on the whole batch."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ...modes import STATS_MODES
from ...module import SyncBatchNorm
from ..watch import Watch
from .parts import CHANNELS, Case, close, random_inputs, random_layer


def cases() -> Iterator[Case]:
    """Families ``costs`` and ``training``."""
    name = "costs: one collective each way, no host sync, nothing saved but the input"
    yield Case(name, 2, check_costs)
    yield Case("training: DistributedDataParallel equals one process on the whole batch", 3, check_training)


def check_costs(impl: str, device: str) -> None:
    """A step issues two collectives, of 3C + 2 and 2C float64, and saves its input and O(C) numbers for backward."""
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
        assert forward.collectives == [("all_reduce", 3 * CHANNELS + 2, torch.float64)], forward.collectives
        assert backward.collectives == [("all_reduce", 2 * CHANNELS, torch.float64)], backward.collectives
        assert not forward.host_reads + backward.host_reads
        others = [t for t in saved if t.data_ptr() != x.data_ptr() or x.numel() == 0]
        assert sum(t.numel() for t in others) <= 8 * CHANNELS, [tuple(t.shape) for t in saved]


def check_training(impl: str, device: str) -> None:
    """Steps under DistributedDataParallel in mode 'exact' equal those of one process on the whole batch."""
    rank, world_size = dist.get_rank(), dist.get_world_size()

    def network(norm: Callable[[int], nn.Module]) -> nn.Module:
        torch.manual_seed(3)
        convolutions = nn.Conv2d(1, 6, 3), norm(6), nn.ReLU(), nn.Conv2d(6, CHANNELS, 3), norm(CHANNELS)
        return nn.Sequential(*convolutions, nn.Flatten(), nn.Linear(16 * CHANNELS, 2))

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
