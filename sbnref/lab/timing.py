"""Comparable times: measured in one run, interleaved."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

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
            rounds[name].append(time_once(work, before))
        done += 1
    return rounds


def time_once(work: Work, before: Work | None) -> float:
    """Return the seconds of one run, after ``before``."""
    if before is not None:
        before()
    begin = time.perf_counter()
    work()
    return time.perf_counter() - begin
