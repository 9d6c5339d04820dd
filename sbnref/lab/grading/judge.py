"""Judge four submitted functions. The expected results are computed here, in a process that does not run them."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

from ...conformance import cases
from ...impls import Implementation, reference, register_impl
from ...launch import RankError, Ranks
from ..sandbox.process import START, Died, Job, Student
from .hints import where_to_look
from .report import StageGrade
from .search import Found
from .steps import Failure, TrainingStep, search_steps


class Judge:
    """Grade one stage after the other; ``results`` are by stage."""

    def __init__(self, job: Job, examples: int, timeout: float, seed: int) -> None:
        self._place = tempfile.TemporaryDirectory(prefix="sbnref-check-", ignore_cleanup_errors=True)
        self.examples, self.timeout, self.seed = examples, timeout, seed
        self.results: dict[str, StageGrade] = {}
        self.student = Student(replace(job, place=self._place.name))
        self.impl: Implementation = self.student.implementation()

    def grade_all(self, stages: list[str]) -> list[StageGrade]:
        """Grade stages, or ``'layer'``, the suite over the whole layer.

        Raises:
            NotGradable: the target cannot be graded.
        """
        try:
            self.student.start(self.timeout)
        except Died as death:
            failure = Failure("importing it", death.what, printed=death.printed)
            return [_graded(stage, death.status, 0, failure) for stage in stages]
        for stage in stages:
            self.run_suite() if stage == "layer" else self.grade(stage)
        return [self.results[stage] for stage in stages]

    def grade(self, stage: str) -> None:
        """Grade a stage. If its failure comes from a wrong ``saved``, change the result of ``forward_apply`` too."""
        self.student.allow(self.timeout)
        try:
            found = self._search(stage, reference)
        except NotImplementedError as error:
            self.results[stage] = _graded(stage, "not written", 0, Failure("", str(error)))
            return
        tried = found.tried
        saves = stage.startswith("backward") and self._status("forward_apply") not in ("crashed", "timed out")
        if saves and found.status in ("passed", "failed"):
            # The layout of saved is that of the file's own forward_apply, or the reference's.
            with suppress(NotImplementedError):
                own = self._search(stage, self.impl)
                tried += own.tried
                if own.fault is None or own.status != "failed" or found.status == "failed":
                    found = own
                elif self._status("forward_apply") == "passed":
                    what = f"{stage} is right with the reference's saved, but wrong with this one: {own.fault.what}"
                    blamed = replace(own.fault, what=what)
                    self.results["forward_apply"] = _graded("forward_apply", "failed", own.tried, blamed)
        slow = f"too slow: tried only {found.tried} of {self.examples} training steps within the time limit"
        failure = found.fault or (Failure("", slow) if found.status == "timed out" else None)
        self.results[stage] = _graded(stage, found.status, tried, failure)

    def _status(self, stage: str) -> str:
        """Return a stage's status, 'passed' if it was not graded."""
        return self.results[stage].status if stage in self.results else "passed"

    def _search(self, stage: str, saved_by: Implementation) -> Found[TrainingStep, Failure]:
        """Search for 0.3 of the time, so that two searches fit into the limit."""
        limits: dict[str, Any] = {"examples": self.examples, "seed": self.seed, "seconds": 0.3 * self.timeout}
        return search_steps(stage, self.impl, saved_by=saved_by, student=self.student, **limits)

    def run_suite(self) -> None:
        """Run the suite over the whole layer on real process groups. Every rank has its own process for the code."""
        self.student.close()
        job = self.student.job
        name = f"graded: {job.target}"
        broken: list[Failure] = []
        todo = sorted(cases(), key=lambda case: case.world_size)
        for world_size, of_size in itertools.groupby(todo, key=lambda case: case.world_size):
            with Ranks(world_size, timeout=self.timeout) as ranks:
                for case in of_size:
                    try:
                        ranks.run(_run_case, name, job, self.timeout, case.check)
                    except (RankError, TimeoutError) as error:
                        broken.append(Failure(case.name, str(error).strip().splitlines()[-1]))
        failure = replace(broken[0], step=", ".join(f.step for f in broken)) if broken else None
        self.results["layer"] = _graded("layer", "failed" if broken else "passed", len(todo), failure)

    def close(self) -> None:
        """End the code's process, and delete its folder."""
        self.student.close()
        self._place.cleanup()


def _graded(stage: str, status: str, tried: int, failure: Failure | None) -> StageGrade:
    """Return the grade of a stage, with a hint."""
    if failure is None:
        return StageGrade(stage, status, tried)
    fields = asdict(failure)
    return StageGrade(stage, status, tried, fields, *where_to_look(stage, status, fields))


_students: list[Student] = []  # of this rank, at most one, kept between cases


def _run_case(name: str, job: Job, timeout: float, check: Callable[[str, str], Any]) -> None:
    if not _students:
        _students.append(Student(job))
        register_impl(name, _students[0].implementation())
    _students[0].allow(START + timeout)
    check(name, "cpu")
