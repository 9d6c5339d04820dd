"""How long kernels take on a CUDA GPU: by events, on inputs that its cache does not hold, beside copying."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .kernels import SPLITS, Call, Kernels

SHAPES = ((2, 256, 200, 304), (32, 256, 14, 14))  # on which kernels are timed: beyond the cache, and within it
SAMPLES = 11


@dataclass(frozen=True)
class Timed:
    """How long a forward pass takes on one tensor.

    Attributes:
        gpu: its name.
        shape: of x, float32.
        layout: ``'contiguous'`` or ``'channels_last'``.
        seconds: the median over samples of several calls.
        quartiles: the first and the third, in seconds.
        floor: seconds that two reads and a write take at the speed of copying.
        beside: seconds that ``torch.nn.functional.batch_norm`` takes, the median too.
    """

    gpu: str
    shape: tuple[int, ...]
    layout: str
    seconds: float
    quartiles: tuple[float, float]
    floor: float
    beside: float

    @property
    def bytes_per_second(self) -> float:
        """What two reads and a write of x come to."""
        return 3 * 4 * math.prod(self.shape) / self.seconds

    def __str__(self) -> str:
        first, third = (f"{1e3 * seconds:.3g}" for seconds in self.quartiles)
        return (
            f"{self.shape}, {self.layout.replace('_', '-')}: {1e3 * self.seconds:.3g} ms ({first} to {third}), "
            f"{self.bytes_per_second / 1e9:.0f} GB/s, {self.floor / self.seconds:.2f} of the speed of copying; "
            f"torch's batch_norm takes {1e3 * self.beside:.3g} ms"
        )


def time_file(file: Path) -> list[Timed]:
    """The forward pass of a file of kernels, timed on each of :data:`SHAPES` in both memory formats.

    It runs here and now, and nothing stands between the kernels and the GPU's memory.

    Raises:
        RuntimeError: as :func:`time_forward` says.
    """
    copied = copying()
    cases = itertools.product(SHAPES, ("contiguous", "channels_last"))
    return [time_forward(Kernels(file), shape, layout, copied) for shape, layout in cases]


def time_forward(kernels: Kernels, shape: tuple[int, ...], layout: str, copied: float) -> Timed:
    """Run kernels on a GPU, see that they are right there, and time them.

    Args:
        kernels: a file's, whose functions together are the forward pass.
        shape: of x, (N, C, H, W).
        layout: ``'contiguous'`` or ``'channels_last'``.
        copied: bytes per second, read and written, of :func:`copying`.

    Raises:
        RuntimeError: they do not compile, cannot be launched, or give another result than PyTorch.
    """
    gpu = torch.cuda.get_device_properties("cuda")
    size, channels = 4 * math.prod(shape), shape[1]
    copies, repetitions = counts(size, gpu.L2_cache_size, copied)
    xs = [_random(shape, layout) for _ in range(copies)]
    resident = gpu.multi_processor_count * (gpu.max_threads_per_multi_processor // kernels.threads)
    elements = math.prod(shape) // channels
    splits = max(1, min(SPLITS, -(-resident // channels), elements // kernels.threads))
    calls = [Call(kernels, x, splits=splits, room=SPLITS) for x in xs]
    apart = (calls[0].run() - F.batch_norm(xs[0], None, None, training=True)).abs().max().item()
    if not apart < 1e-4:
        raise RuntimeError(f"on the GPU y is off by {apart:.3g} on {shape}, {layout}")
    samples = eager_seconds(lambda i: calls[i % copies].launch(), repetitions)
    theirs = eager_seconds(lambda i: F.batch_norm(xs[i % copies], None, None, training=True), repetitions)
    first, median, third = statistics.quantiles(samples, n=4)
    name = torch.cuda.get_device_name()
    return Timed(name, shape, layout, median, (first, third), 3 * size / copied, statistics.median(theirs))


def _random(shape: tuple[int, ...], layout: str) -> Tensor:
    x = torch.randn(shape, device="cuda") + 1
    return x.contiguous(memory_format=torch.channels_last) if layout == "channels_last" else x


def eager_seconds(work: Callable[[int], Any], repetitions: int) -> list[float]:
    """Seconds of ``work(i)`` on the device, one number for each of several samples of ``repetitions`` calls."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin = time.perf_counter()
    for i in range(3):
        work(i)
    torch.cuda.synchronize()
    host_seconds = (time.perf_counter() - begin) / 3
    # Longer than the host takes to ask for everything, at 2 GHz; not more than a sample is worth.
    pause = int(min(1.5 * host_seconds * repetitions, 0.02) * 2e9)
    samples = []
    for _ in range(SAMPLES):
        torch.cuda._sleep(pause)
        start.record()
        for i in range(repetitions):
            work(i)
        end.record()
        end.synchronize()
        samples.append(start.elapsed_time(end) / 1e3 / repetitions)
    return samples


def copying() -> float:
    """Bytes per second, read and written, at which the GPU copies."""
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda").random_()
    target = torch.empty_like(source)
    return 2 * source.numel() / statistics.median(eager_seconds(lambda _: target.copy_(source), 5))


def counts(size: int, cache: int, bandwidth: float) -> tuple[int, int]:
    """How many inputs of so many bytes the cache does not hold, and how many calls make a sample, each input in one."""
    copies = min(max(math.ceil(3 * cache / size), 1), 32)
    return copies, max(2, copies, min(20, int(2e-3 / (8 * size / bandwidth))))
