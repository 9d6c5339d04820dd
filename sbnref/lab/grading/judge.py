"""Judge four submitted functions. The expected results are computed here, in a process that does not run them."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from ...conformance import cases
from ...impls import Implementation, reference, register_impl
from ...launch import RankError, Ranks
from ..sandbox.process import GRACE, START, Died, Job, Refused, Student
from .search import Failure, TrainingStep, examine, features_of, search

Result = dict[str, Any]  # status, failure, tried


class Judge:
    """Grades one stage after the other.

    Attributes:
        results: by stage.
        unconfined: why the process in which the code runs could not be confined; None where it is.
    """

    def __init__(self, job: Job, examples: int, timeout: float, seed: int) -> None:
        self._place = tempfile.TemporaryDirectory(prefix="sbnref-check-", ignore_cleanup_errors=True)
        self.job = replace(job, place=self._place.name)
        self.examples, self.timeout, self.seed = examples, timeout, seed
        self.results: dict[str, Result] = {}
        self.student = Student(self.job)
        self.impl: Implementation = self.student.implementation()
        self._death: Died | None = None  # the first in the stage at hand

    @property
    def unconfined(self) -> str | None:
        return self.student.unconfined

    def begin(self) -> Result | None:
        """Have the code brought in; how that ended, if it did not come to an end.

        Raises:
            Refused: there is nothing to grade.
        """
        try:
            self.student.start(self.timeout)
        except Died as death:
            return _result(_status(death), Failure("importing it", death.what), 0, death.printed)
        # What can be confined is confined whenever it is started again, on every rank.
        self.job = self.student.job = replace(self.job, confined=self.unconfined is None)
        return None

    def grade(self, stage: str) -> None:
        """Find the stage's result, and ``forward_apply``'s anew if it is what that saves that is wrong."""
        self._death, self.student.apart = None, None
        self.student.deadline = time.monotonic() + self.timeout
        try:
            failure, tried = self._search(stage, reference)
        except NotImplementedError as error:
            self.results[stage] = _result("not written", Failure("", str(error)), 0)
            return
        if self._death is not None:
            death = self._death
            failure = failure or Failure("", death.what)  # it does not happen every time
            self.results[stage] = _result(_status(death), failure, tried, death.printed)
            return
        if failure is None and tried < self.examples / 4:
            what = (
                f"is so slow that of {self.examples} training steps only {tried} could be tried in {self.timeout:g} s"
            )
            self.results[stage] = _result("timed out", Failure("", what), tried)
            return
        if stage.startswith("backward") and not self._dies("forward_apply"):
            # saved is laid out as the file's own forward_apply likes, or as the reference does
            with suppress(NotImplementedError):
                by_own, again = self._search(stage, self.impl)
                tried += again
                if self._death is not None:
                    self.results[stage] = _result(_status(self._death), by_own, tried, self._death.printed)
                    return
                if by_own is None and self._too_few(stage, again):
                    return
                if by_own is not None and failure is None and self._passed("forward_apply"):
                    what = f"what it saves leads {stage} astray, right with what the reference saves: {by_own.what}"
                    self.results["forward_apply"] = _result("failed", replace(by_own, what=what), again)
                failure = failure and by_own
        self.results[stage] = _result("failed" if failure else "passed", failure, tried)

    def _too_few(self, stage: str, tried: int) -> bool:
        """Whether the time was over before enough was tried to say that the stage is right: then that is its result."""
        if tried >= self.examples / 4:
            return False
        what = f"is so slow that of {self.examples} training steps only {tried} could be tried in its time"
        self.results[stage] = _result("timed out", Failure("", what), tried)
        return True

    def _passed(self, stage: str) -> bool:
        """Whether nothing is known to be wrong with a stage."""
        return self.results.get(stage, {"status": "passed"})["status"] == "passed"

    def _dies(self, stage: str) -> bool:
        return self.results.get(stage, {}).get("status") in ("crashed", "timed out")

    def _search(self, stage: str, saved_by: Implementation) -> tuple[Failure | None, int]:
        """For so much of the time that two searches end in it."""
        self._until = time.monotonic() + 0.3 * self.timeout
        return search(
            stage,
            self.impl,
            saved_by=saved_by,
            examples=self.examples,
            late=lambda: time.monotonic() > self._until,
            seed=self.seed,
            trial=self._try,
        )

    def _try(self, stage: str, impl: Implementation, step: TrainingStep, saved_by: Implementation) -> Failure | None:
        """Examine a step. Where the code's process dies, the rest is tried in forks of another one."""
        try:
            return examine(stage, impl, step, saved_by)
        except Died as death:
            if self._death is None:
                self._death = death
                if hasattr(os, "fork"):
                    self.student.apart = max(1.0, self.timeout / 20)
                    self._until = time.monotonic() + 0.8 * self.timeout
                    self.student.deadline = self._until + GRACE
                else:
                    self._until = 0
            return Failure(str(step), death.what, features=features_of(step))

    def run_suite(self) -> None:
        """The whole layer, on real process groups. Every rank has a process of its own for the code."""
        self.student.close()
        name = f"graded: {self.job.target}"
        broken: list[Failure] = []
        todo = cases()
        for world_size in sorted({case.world_size for case in todo}):
            with Ranks(world_size, timeout=self.timeout) as ranks:
                for case in todo:
                    if case.world_size != world_size:
                        continue
                    try:
                        ranks.run(_run_case, name, self.job, self.timeout, case.check)
                    except (RankError, TimeoutError) as error:
                        broken.append(Failure(case.name, str(error).strip().splitlines()[-1]))
                with suppress(RankError, TimeoutError):
                    ranks.run(_close)
        failure = replace(broken[0], step=", ".join(f.step for f in broken)) if broken else None
        self.results["layer"] = _result("failed" if broken else "passed", failure, len(todo))

    def close(self) -> None:
        """End the code's process, and leave nothing."""
        self.student.close()
        self._place.cleanup()


def _status(death: Died) -> str:
    return "timed out" if death.hung else "crashed"


def _result(status: str, failure: Failure | None, tried: int, printed: str = "") -> Result:
    told = None if failure is None else {**asdict(failure), **({"printed": printed} if printed else {})}
    return {"status": status, "failure": told, "tried": tried}


_students: list[Student] = []  # of this rank: one, from the first case on


def _run_case(name: str, job: Job, timeout: float, check: Callable[[str, str], Any]) -> None:
    if not _students:
        _students.append(Student(job))
        register_impl(name, _students[0].implementation())
    _students[0].deadline = time.monotonic() + START + timeout
    check(name, "cpu")


def _close() -> None:
    for student in _students:
        student.close()


__all__ = ["Judge", "Refused"]
