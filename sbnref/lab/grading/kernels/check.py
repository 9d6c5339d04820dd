"""Grade a file of CUDA for a task: whether it is legal, right and efficient, and the smallest input on which it is not.

The file is compiled for the simulation and runs in a process of its own (:mod:`sbnref.lab.sandbox`), which gets inputs
and returns results. Expected results are computed here. A file that could get around the watch is refused before it is
compiled.
"""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....conformance.stages import ContractError, difference
from ...sandbox.process import GRACE, Died, Job, Student, plain
from ...task_call import COUNTED, lines_in, unwritten
from ...tasks import TYPES, Task, Typical
from .. import require_hypothesis
from .cases import Case, cases
from .job import RefusedFile, job_of
from .report import PARTS, Fault, KernelGrade, Part
from .repro import program

STOPPED = Fault("the kernels do something illegal; see the part above")
MULTIPROCESSORS = 132  # of an H100, each of which should have a block
FAR_FROM_ZERO = "Only numbers far from zero fail: look for a sum or a difference that loses digits."
NEAR = 0.9  # such a share of the least traffic counts as all of it
SECTOR = 32  # bytes


def check_kernels(
    target: str | Path,
    task: Task,
    parts: Sequence[str] = PARTS,
    *,
    examples: int = 100,
    timeout: float = 60,
    memory: float = 4,
    seed: int | None = None,
    repro: Path | None = None,
    hide: Sequence[str | Path] = (),
    user: str | None = None,
) -> KernelGrade:
    """Grade a file of CUDA that defines a task's function.

    Args:
        target: the file.
        task: what it has to compute, see :func:`sbnref.lab.tasks.find_task`.
        parts: which of ``legal``, ``right`` and ``efficient`` to grade.
        examples: how many inputs to try.
        timeout: seconds for each part, after which the process is ended.
        memory: gigabytes that it may take, on Linux.
        seed: of the inputs; None for another one each time.
        repro: where to write a program that fails likewise under ``sbnref lab run``, if a small input fails.
        hide: folders and files that the code must not see, where it can be confined.
        user: the user that the code runs as if root grades; None for the user who grades.

    Returns:
        The report. However the kernels fail, it is in there.

    Raises:
        ValueError: there is no such file or part.
        RuntimeError: hypothesis, which searches for the smallest failure, or a C++ compiler is missing.
    """
    require_hypothesis()
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        raise ValueError(f"expected parts among {PARTS}, got {unknown or 'none'}")
    parts = [part for part in PARTS if part in parts]
    file = Path(target).resolve()
    if not file.is_file():
        raise ValueError(f"expected a file of kernels, but there is no file {target}")
    seed = secrets.randbelow(2**20) if seed is None else seed
    try:
        with job_of(file, str(target), task, memory, 5 * timeout, hide, user) as (job, source, built):
            judge = Judge(task, source, built, job, examples, timeout, seed)
            try:
                grade = judge.grade(str(target), parts)
            finally:
                judge.student.close()
    except RefusedFile as refused:
        return _no_grade(str(target), parts, refused.fault, seed)
    if repro is not None and judge.smallest is not None:
        repro.write_text(program(file, task, judge.smallest, next(p.fault for p in grade.parts if p.fault)))
    return grade


class _Wrong(Exception):
    """Carries what is wrong out of a search."""


class Judge:
    """Answers the three questions, one after the other.

    Attributes:
        smallest: the smallest input on which the function fails, if a report can show it.
    """

    def __init__(
        self, task: Task, source: Path, built: Path, job: Job, examples: int, timeout: float, seed: int
    ) -> None:
        self.task, self.source, self.built = task, source, built
        self.examples, self.timeout, self.seed = examples, timeout, seed
        self.student = Student(job)
        self.smallest: Case | None = None
        self._stopped = 0  # inputs of a search on which the kernels did something illegal

    def grade(self, target: str, parts: Sequence[str]) -> KernelGrade:
        try:
            self.student.start(self.timeout)
        except Died as death:
            return _no_grade(target, parts, Fault(death.what, printed=death.printed), self.seed, _status_of(death))
        self.student.job = replace(self.student.job, confined=self.student.unconfined is None)
        questions = {
            "legal": lambda: self._search("legal", self._legal),
            "right": lambda: self._search("right", self._right),
            "efficient": self._count,
        }
        return KernelGrade(target, [questions[part]() for part in parts], self.seed, self.student.unconfined)

    # ---- on one input ----

    def _call(self, case: Case, order: str) -> dict[str, Any]:
        """What the function made of a case, with the float64 results in ``expected``."""
        expected = self.task.expected(case.given)
        out = self.student.call("run", case.given, _shapes(expected), order)
        outputs = out.get("outputs") if isinstance(out, dict) else None
        for p in self.task.parameters:
            got = outputs.get(p.name) if isinstance(outputs, dict) else None
            if p.is_output and not (
                isinstance(got, Tensor)
                and not got.is_meta
                and got.dtype == TYPES[p.type][0]
                and got.shape == expected[p.name].shape
            ):
                raise ContractError("the process of the kernels gave no answer")
        if not all(type(out.get(name)) is int for name in COUNTED):
            raise ContractError("the process of the kernels gave no counts")
        return out | {"expected": expected}

    def _legal(self, case: Case) -> Fault | None:
        first, second = (self._call(case, order) for order in ("ascending", case.order))
        for out in (first, second):
            if out["refused"] is not None:
                line, other = self._lines(out["frames"])
                return Fault(plain(out["refused"]), str(case), line, other)
        for name, value in first["outputs"].items():
            if (never := unwritten(value)).any():
                index = never.nonzero()[0].tolist()
                return Fault(f"some elements of {name} are never written, such as {name}{index}", str(case))
            if not torch.equal(value.nan_to_num(), second["outputs"][name].nan_to_num()):
                return Fault(f"{name} depends on the order in which blocks and threads take turns", str(case))
        return None

    def _right(self, case: Case) -> Fault | None:
        out = self._call(case, "ascending")
        if out["refused"] is not None:  # which is for the other question
            self._stopped += 1
            return None
        return self._off(out, case)

    def _off(self, out: dict[str, Any], case: Case) -> Fault | None:
        """What is wrong with the results by more than the task's tolerance."""
        for name, want in out["expected"].items():
            got = out["outputs"][name]
            apart = difference(got, want, self.task.allowed(case.given, want), torch.float32)
            if apart.share > 1:
                what = f"{name} is off by {apart.absolute:.3g}" if math.isfinite(apart.absolute) else f"{name} is wrong"
                if unwritten(got).any():
                    what = f"some elements of {name} are never written"
                where = {"index": apart.index, "expected": apart.want, "given": apart.got, "output": name}
                return Fault(what, str(case), **where)
        return None

    def _located(self, fault: Fault, case: Case) -> Fault:
        """The fault of a wrong number, with the line that wrote the number last."""
        if fault.index is None:
            return fault
        expected = self.task.expected(case.given)
        strides = torch.empty(expected[fault.output].shape, device="meta").stride()
        element = sum(map(math.prod, zip(fault.index, strides, strict=True)))
        line, _ = self._lines(self.student.call("writer", case.given, _shapes(expected), fault.output, element))
        return replace(fault, line=line, hint=FAR_FROM_ZERO if case.values == "large mean" else None)

    def _lines(self, frames: object) -> tuple[int | None, int | None]:
        """The lines of the file in which something happened, and in which what it collides with did."""
        if not isinstance(frames, Tensor) or frames.is_meta or frames.dtype != torch.int64 or frames.numel() == 0:
            return None, None
        return lines_in(self.source, self.built, frames.tolist()[:1000])

    # ---- the questions ----

    def _search(self, name: str, question: Callable[[Case], Fault | None]) -> Part:
        """The answer on the smallest input where it is no, if there is one."""
        from ..search import CUT_SHORT, explore

        start = time.monotonic()
        late = start + 0.7 * self.timeout
        self.student.apart, self.student.deadline = None, start + self.timeout
        self._stopped = 0
        smallest: list[tuple[Fault, Case]] = []
        deaths: list[Died] = []
        tried = 0
        cut_short = False

        def fails(case: Case) -> None:
            nonlocal tried, cut_short
            if time.monotonic() > late:
                cut_short = True
                return
            tried += 1
            try:
                fault = question(case)
            except ContractError as error:
                fault = Fault(str(error), str(case))
            except Died as death:  # the rest is tried in forks of another process
                deaths.append(death)
                self.student.apart = max(1.0, self.timeout / 20)
                self.student.deadline = time.monotonic() + self.timeout + GRACE
                fault = Fault(death.what, str(case), printed=death.printed)
            if fault is not None:
                smallest[:] = [(fault, case)]
                raise _Wrong

        explore(cases(self.task, self.seed), fails, examples=self.examples, seed=self.seed, stop=_Wrong)
        if smallest:
            fault, case = smallest[0]
            if case.is_small:
                self.smallest = self.smallest or case
            if not deaths:
                with suppress(ContractError, Died):  # of code that does something else this time
                    fault = self._located(fault, case)
            if cut_short:
                fault = replace(fault, on=f"{fault.on}{CUT_SHORT}")
            return Part(name, _status_of(deaths[0]) if deaths else "failed", 0.0, tried, fault)
        if self._stopped:  # right on some inputs only is not right
            return Part(name, "not graded", 0.0, tried, STOPPED)
        if tried < self.examples / 4:
            slow = Fault(f"so slow that of {self.examples} inputs only {tried} could be tried in {self.timeout:g} s")
            return Part(name, "timed out", 0.0, tried, slow)
        return Part(name, "passed", 1.0, tried)

    def _count(self) -> Part:
        """Count on typical sizes: how near the traffic is to the least, and whether each multiprocessor has a block."""
        self.student.apart, self.student.deadline = None, time.monotonic() + self.timeout
        case = Case(self.task.given(Typical(self.task.typical)), "normal", "ascending")

        def part(status: str, fault: Fault) -> Part:
            return Part("efficient", status, 0.0, fault=fault)

        try:
            out = self._call(case, "ascending")
        except ContractError as error:
            return part("failed", Fault(str(error)))
        except Died as death:
            return part(_status_of(death), Fault(death.what, printed=death.printed))
        if out["refused"] is not None:
            return part("not graded", STOPPED)
        if (fault := self._off(out, case)) is not None:
            return part("failed", replace(fault, what=f"{fault.what} where it is counted"))
        arrays = [v for v in case.given.values() if isinstance(v, Tensor)] + list(out["outputs"].values())
        size = sum(array.numel() * array.itemsize for array in arrays)
        least, moved = self.task.passes * size, SECTOR * out["sectors"]
        if moved < NEAR * size:
            return part("failed", Fault(f"moves {moved:,} bytes, and the arrays have {size:,}"))
        shares = min(1.0, least / moved / NEAR), min(1.0, out["blocks"] / MULTIPROCESSORS)
        counted = {name: out[name] for name in COUNTED} | {"moved": moved, "least": int(least)}
        return Part("efficient", "measured", sum(shares) / len(shares), counted=counted)


def _shapes(results: dict[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in results.items()}


def _status_of(death: Died) -> str:
    """How a part ended whose process died."""
    return "timed out" if death.hung else "crashed"


def _no_grade(target: str, parts: Sequence[str], fault: Fault, seed: int, status: str = "failed") -> KernelGrade:
    """The grade of a file that cannot run, for one reason."""
    first, *others = parts
    rest = [Part(name, "not graded", 0.0, fault=fault) for name in others]
    return KernelGrade(target, [Part(first, status, 0.0, fault=fault), *rest], seed, None)
