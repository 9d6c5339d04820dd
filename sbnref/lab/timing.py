"""Times that can be compared: taken in one run, interleaved, as medians with their spread."""

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
    seconds: float,  # how long to go on; there are at least five rounds
    before: Work | None = None,  # is run before each timing: a barrier, for example
) -> dict[str, list[float]]:  # for each name the seconds of every round
    """Run the works in turn, again and again, so that what disturbs one disturbs all, after three runs of each.

    The turns are drawn anew in every round: what one leaves in the caches, or throws out of them, is found by all.
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
    """The seconds of ``count`` runs after three more. Every rank of a group runs as many, as a collective must."""
    return [_seconds(work, before) for _ in range(count + 3)][3:]


def _seconds(work: Work, before: Work | None) -> float:
    if before is not None:
        before()
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin


def spread(times: Iterable[float]) -> dict[str, float]:
    """Median and quartiles, in seconds, and how many there were."""
    times = list(times)
    first, median, third = statistics.quantiles(times, n=4) if len(times) > 1 else times * 3
    return {"median": median, "first_quartile": first, "third_quartile": third, "repetitions": len(times)}


def peak_bytes(work: Work) -> int:
    """The most memory that ``work`` holds at once beyond what was there before, in bytes, from the CPU's allocator."""
    work()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate((event.nbytes() for event in sorted(events, key=lambda e: e.start_ns())), initial=0))


def fill(shape: tuple[int, ...], dtype: torch.dtype, layout: str) -> torch.Tensor:
    """Random numbers with mean 1, (N, C, *), in the memory format of that name."""
    x = (torch.randn(shape) + 1).to(dtype)
    if layout == "channels_last" and x.dim() in (4, 5):
        x = x.contiguous(memory_format={4: torch.channels_last, 5: torch.channels_last_3d}[x.dim()])
    return x
