"""Comparable times: measured in one run, interleaved, as medians with their spread."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Work = Callable[[], Any]


def interleaved(
    works: dict[str, Work],  # by name
    seconds: float,  # total time; there are at least five rounds
    before: Work | None = None,  # runs before each timing: a barrier, for example
) -> dict[str, list[float]]:  # for each name the seconds of every round
    """Time the works in rounds, after three warm-up runs of each, so that a disturbance affects all of them.

    The order is random in every round, so that all meet the same states of the caches.
    """
    for work in works.values():
        for _ in range(3):
            work()
    rounds: dict[str, list[float]] = {name: [] for name in works}
    turns, lots = list(works.items()), random.Random(0)
    start, done = time.perf_counter(), 0
    while done < 5 or (time.perf_counter() - start < seconds and done < 500):
        lots.shuffle(turns)
        for name, work in turns:
            rounds[name].append(_seconds(work, before))
        done += 1
    return rounds


def repeated(work: Work, count: int, before: Work) -> list[float]:
    """Return the seconds of ``count`` runs after three warm-up runs. All ranks make the same number of runs."""
    return [_seconds(work, before) for _ in range(count + 3)][3:]


def _seconds(work: Work, before: Work | None) -> float:
    if before is not None:
        before()
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


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
