"""Shared by the scripts in this folder: the network, the batches, and the file of the result."""

import gc
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

SIZES = [(3, 0), (5, 4), (0, 6)]  # samples of two ranks, per step


def network() -> nn.Module:
    """Return a network with equal weights on every rank, in float64 so that one process and two nearly agree."""
    torch.manual_seed(0)
    layers = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5)
    return nn.Sequential(*layers).double()


def batches(rank: int | None = None) -> list[tuple[Tensor, Tensor, int]]:
    """Return, for each step, images and labels of one rank or of all, and the number of samples on all ranks."""
    generator = torch.Generator().manual_seed(1)
    steps = []
    for sizes in SIZES:
        images = torch.randn(sum(sizes), 3, 4, 4, dtype=torch.float64, generator=generator) + 1
        labels = torch.randint(0, 5, (sum(sizes),), generator=generator)
        mine = slice(None) if rank is None else slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
        steps.append((images[mine], labels[mine], sum(sizes)))
    return steps


def alone(parts: Iterable[tuple[Tensor, ...]]) -> dict[str, Tensor]:
    """Train one process on the whole batches with an ordinary batch norm, and return its state dict."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for images, labels, *_ in parts:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model.state_dict()


def assert_trained(first: dict[str, Tensor], second: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert first.keys() == want.keys()
    for name, value in want.items():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], value, rtol=1e-12, atol=1e-12)


def loss(outputs: Tensor, labels: Tensor, samples: int) -> Tensor:
    """Return a loss whose average over ranks, by DistributedDataParallel, is the mean over all ranks' samples."""
    return F.cross_entropy(outputs, labels, reduction="sum") * dist.get_world_size() / samples


def rank() -> int:
    """Return the rank from torchrun, before a process group exists."""
    return int(os.environ["RANK"])


def save(model: nn.Module) -> None:
    """Save the model in the script's folder, for the test."""
    torch.save(model.state_dict(), Path(sys.argv[1], f"{rank()}.pt"))


def leave() -> None:
    """End the process group, after the model is gone: see the end of the script in docs/howto/torchrun.md."""
    gc.collect()
    dist.destroy_process_group()
