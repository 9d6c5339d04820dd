"""Search for the smallest case on which submitted code fails, even by a crash or a timeout."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis.errors import Flaky
from hypothesis.strategies import SearchStrategy

from ..sandbox.process import Died, Student

CUT_SHORT = " (the search ran out of time, so a smaller one may fail too)"
Case = TypeVar("Case")
Fault = TypeVar("Fault")


class _Fails(Exception):
    """End a trial on a case that fails."""


@dataclass
class Found(Generic[Case, Fault]):
    """The result of a search."""

    status: str = "passed"  # or failed, crashed, timed out
    tried: int = 0  # cases
    fault: Fault | None = None  # on the smallest case that fails
    case: Case | None = None  # that case
    died: bool = False  # whether the code's process ended
    cut_short: bool = False  # whether the search ran out of time


def search(
    cases: SearchStrategy[Case],  # the simplest first
    trial: Callable[[Case], Fault | None],  # returns the fault on a case
    on_death: Callable[[Case, Died], Fault],  # returns the fault on a case on which the code's process died
    examples: int,  # number of cases to try
    seed: int,  # of the cases
    seconds: float = float("inf"),  # time limit, extended if the process died
    student: Student | None = None,  # runs the code; after a death, in forks of another process
) -> Found[Case, Fault]:
    """Try cases. If one fails, shrink it to the smallest case that fails."""
    found: Found[Case, Fault] = Found()
    until = time.monotonic() + seconds

    def fails(case: Case) -> None:
        nonlocal until
        if time.monotonic() > until:
            found.cut_short = True
            return
        found.tried += 1
        try:
            fault = trial(case)
        except Died as death:
            fault = on_death(case, death)
            if not found.died and student is not None:
                until = student.shrink_apart()
                found.died, found.status = True, death.status
        if fault is not None:
            found.fault, found.case = fault, case
            raise _Fails

    quiet: Any = dict(deadline=None, database=None, report_multiple_bugs=False, suppress_health_check=list(HealthCheck))
    profile = settings(max_examples=examples, phases=[Phase.generate, Phase.shrink], **quiet)
    run = profile(seeded(seed)(given(cases)(fails)))
    with suppress(_Fails, Flaky):  # flaky: a race, or out of time; then the last failure counts
        run()
    if not found.died and found.fault is not None:
        found.status = "failed"
    elif found.fault is None and found.tried < examples / 4:
        found.status = "timed out"
    return found
