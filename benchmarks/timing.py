"""Times as medians with their spread, peak memory, and random inputs."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from itertools import accumulate

import torch
from torch.profiler import ProfilerActivity, profile

from sbnref.lab.timing import Work, time_once


def repeated(work: Work, count: int, before: Work) -> list[float]:
    """Return the seconds of ``count`` runs after three warm-up runs. All ranks make the same number of runs."""
    return [time_once(work, before) for _ in range(count + 3)][3:]


def spread(times: Iterable[float]) -> dict[str, float]:
    """Return median and quartiles, in seconds, and the number of times."""
    times = list(times)
    first, median, third = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
    return {"median": median, "first_quartile": first, "third_quartile": third, "repetitions": len(times)}


def peak_bytes(work: Work) -> int:
    """Return the peak memory that ``work`` allocates, in bytes, from the CPU's allocator."""
    work()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate((event.nbytes() for event in sorted(events, key=lambda e: e.start_ns())), initial=0))


def fill(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> torch.Tensor:
    """Return random numbers with mean 1, (N, C, *), in a memory format."""
    x = (torch.randn(shape) + 1).to(dtype)
    if layout == "channels_last" and x.dim() in (4, 5):
        x = x.contiguous(memory_format={4: torch.channels_last, 5: torch.channels_last_3d}[x.dim()])
    return x
