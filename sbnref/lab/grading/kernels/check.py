"""Grade a file of CUDA for a task: whether it is legal, right and efficient, and the smallest input on which it is not.

The file is compiled for the simulation and runs in a process of its own (:mod:`sbnref.lab.sandbox`), which gets inputs
and returns results. Expected results are computed here. A file that could get around the watch is refused before it is
compiled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ....conformance.stages import ContractError, difference
from ...kernels import SECTOR
from ...sandbox.process import Died, Student, plain
from ...task_call import COUNTED, lines_in, unwritten
from ...tasks import TYPES, Task, Typical
from .. import plan
from .job import RefusedFile, job_of
from .report import PARTS, Fault, KernelGrade, Part
from .repro import program

if TYPE_CHECKING:
    from .cases import Case

STOPPED = Fault("the kernels do something illegal; see the part above")
MULTIPROCESSORS = 132  # of an H100, each of which should have a block
FAR_FROM_ZERO = "Only numbers far from zero fail: look for a sum or a difference that loses digits."
NEAR = 0.9  # such a share of the least traffic counts as all of it


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
    parts, seed = plan("parts", parts, PARTS, seed)
    file = Path(target).resolve()
    if not file.is_file():
        raise ValueError(f"expected a file of kernels, but there is no file {target}")
    limits = {"memory": memory, "seconds": 5 * timeout, "hide": hide, "user": user}
    try:
        with job_of(file, str(target), task, **limits) as (job, source, built), closing(Student(job)) as student:
            judge = Judge(task, source, built, student, examples, timeout, seed)
            grade = judge.grade(str(target), parts)
    except RefusedFile as refused:
        return _no_grade(str(target), parts, refused.args[0], seed)
    if repro is not None and judge.smallest is not None:
        repro.write_text(program(file, task, judge.smallest, next(p.fault for p in grade.parts if p.fault)))
    return grade


class Judge:
    """Answers the three questions, one after the other."""

    def __init__(
        self, task: Task, source: Path, built: Path, student: Student, examples: int, timeout: float, seed: int
    ) -> None:
        self.task, self.source, self.built, self.student = task, source, built, student
        self.examples, self.timeout, self.seed = examples, timeout, seed
        self.smallest: Case | None = None  # input on which the function fails, if a report can show it
        self._stopped = 0  # inputs of a search on which the kernels did something illegal

    def grade(self, target: str, parts: Sequence[str]) -> KernelGrade:
        try:
            self.student.start(self.timeout)
        except Died as death:
            return _no_grade(target, parts, Fault(death.what, printed=death.printed), self.seed, death.status)
        questions = {"legal": self._legal, "right": self._right}
        found = [self._search(part, questions[part]) if part in questions else self._count() for part in parts]
        return KernelGrade(target, found, self.seed, self.student.unconfined)

    # ---- on one input ----

    def _call(self, case: Case, order: str) -> dict[str, Any]:
        """What the function made of a case, with the float64 results in ``expected``."""
        expected = self.task.expected(case.given)
        out = self.student.call("run", case.given, _shapes(expected), order)
        outputs = out.get("outputs") if isinstance(out, dict) else None
        for p in self.task.parameters:
            got = outputs.get(p.name) if isinstance(outputs, dict) else None
            kind = (got.dtype, got.shape, got.is_meta) if isinstance(got, Tensor) else None
            if p.is_output and kind != (TYPES[p.type][0], expected[p.name].shape, False):
                raise ContractError("the process of the kernels gave no answer")
        if not all(type(out.get(name)) is int for name in COUNTED):
            raise ContractError("the process of the kernels gave no counts")
        return out | {"expected": expected}

    def _legal(self, case: Case) -> Fault | None:
        first, second = (self._call(case, order) for order in ("ascending", case.order))
        for out in (first, second):
            if out["refused"] is not None:
                line, other = self._lines(out["sites"])
                return Fault(plain(out["refused"]), str(case), line, other)
        for name, value in first["outputs"].items():
            if (missing := unwritten(name, value)) is not None:
                return Fault(missing, str(case))
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
                where = {"index": apart.index, "expected": apart.want, "given": apart.got, "output": name}
                return Fault(unwritten(name, got) or what, str(case), **where)
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

    def _lines(self, sites: object) -> tuple[int | None, int | None]:
        """The lines of the file in which something happened, and in which what it collides with did."""
        found = [site[:1000] for site in sites if isinstance(site, list)] if isinstance(sites, list) else []
        if not all(type(address) is int for site in found for address in site):
            return None, None
        return lines_in(self.source, self.built, found)

    # ---- the questions ----

    def _search(self, name: str, question: Callable[[Case], Fault | None]) -> Part:
        """The answer on the smallest input where it is no, if there is one."""
        from ..search import CUT_SHORT, search  # these take hypothesis
        from .cases import cases

        def trial(case: Case) -> Fault | None:
            try:
                return question(case)
            except ContractError as error:
                return Fault(str(error), str(case))

        def died(case: Case, death: Died) -> Fault:
            return Fault(death.what, str(case), printed=death.printed)

        self.student.allow(self.timeout)
        self._stopped = 0
        inputs, seconds = cases(self.task, self.seed), 0.7 * self.timeout
        found = search(inputs, trial, died, self.examples, self.seed, seconds, self.student)
        fault, case, status = found.fault, found.case, found.status
        if fault is not None and case is not None:
            if case.is_small:
                self.smallest = self.smallest or case
            if not found.died:
                with suppress(ContractError, Died):  # of code that does something else this time
                    fault = self._located(fault, case)
            if found.cut_short:
                fault = replace(fault, on=f"{fault.on}{CUT_SHORT}")
        elif self._stopped:  # right on some inputs only is not right
            status, fault = "not graded", STOPPED
        elif status == "timed out":
            tried = f"only {found.tried} could be tried in {self.timeout:g} s"
            fault = Fault(f"so slow that of {self.examples} inputs {tried}")
        return Part(name, status, float(status == "passed"), found.tried, fault)

    def _count(self) -> Part:
        """Count on typical sizes: how near the traffic is to the least, and whether each multiprocessor has a block."""
        from .cases import Case

        self.student.allow(self.timeout)
        case = Case(self.task.given(Typical(self.task.typical)), "normal", "ascending")

        def part(status: str, fault: Fault) -> Part:
            return Part("efficient", status, fault=fault)

        try:
            out = self._call(case, "ascending")
        except ContractError as error:
            return part("failed", Fault(str(error)))
        except Died as death:
            return part(death.status, Fault(death.what, printed=death.printed))
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


def _no_grade(target: str, parts: Sequence[str], fault: Fault, seed: int, status: str = "failed") -> KernelGrade:
    """The grade of a file that cannot run, for one reason."""
    first, *others = parts
    rest = [Part(name, "not graded", fault=fault) for name in others]
    return KernelGrade(target, [Part(first, status, fault=fault), *rest], seed, None)
