"""Grade a CUDA file for a task: whether it is legal, right and efficient, and the smallest input on which it is not.

The file is compiled for the simulation and runs in a separate process (:mod:`sbnref.lab.sandbox`), which gets inputs
and returns results. Expected results are computed here. A file that could hide accesses from the simulation is rejected
before it is compiled.
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
from .job import RejectedFile, job_of
from .report import PARTS, Fault, KernelGrade, Part
from .repro import program

if TYPE_CHECKING:
    from .cases import Case

STOPPED = Fault("the kernels do something illegal; see the part above")
MULTIPROCESSORS = 132  # of an H100; each should have a block
OVERFLOW = "Only numbers far from zero fail: look for an overflow, such as of exp."
FAR_FROM_ZERO = "Only numbers far from zero fail: look for a sum or a difference that loses digits."
NEAR = 0.9  # this share of the least traffic gets the full score


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
    """Grade a CUDA file that defines a task's function.

    Args:
        target: the file.
        task: the task, see :func:`sbnref.lab.tasks.find_task`.
        parts: the parts to grade: ``legal``, ``right`` and ``efficient``.
        examples: the number of inputs to try.
        timeout: the time limit for each part, in seconds.
        memory: the memory limit, in gigabytes, on Linux.
        seed: the seed of the inputs; None for a random one.
        repro: the path for a program with the same failure for ``sbnref lab run``, written if a small input fails.
        hide: folders and files to hide from the code, if it can be confined.
        user: the user to run the code as, if root grades; None for the current user.

    Returns:
        The report, which also contains every failure of the kernels.

    Raises:
        ValueError: the file or a part does not exist.
        RuntimeError: hypothesis or a C++ compiler is missing.
    """
    parts, seed = plan("parts", parts, PARTS, seed)
    file = Path(target).resolve()
    if not file.is_file():
        raise ValueError(f"expected a file of kernels, got {target}, which does not exist")
    limits = {"memory": memory, "seconds": 5 * timeout, "hide": hide, "user": user}
    try:
        with job_of(file, str(target), task, **limits) as (job, source, built), closing(Student(job)) as student:
            judge = Judge(task, source, built, student, examples, timeout, seed)
            grade = judge.grade(str(target), parts)
    except RejectedFile as rejected:
        fault, status = rejected.args
        return _no_grade(str(target), parts, fault, status, seed)
    if repro is not None and judge.smallest is not None:
        repro.write_text(program(file, task, judge.smallest, next(p.fault for p in grade.parts if p.fault)))
    return grade


class Judge:
    """Grade the parts, one after the other."""

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
            return _no_grade(target, parts, Fault(death.what, printed=death.printed), death.status, self.seed)
        questions = {"legal": self._legal, "right": self._right}
        found = [self._search(part, questions[part]) if part in questions else self._count() for part in parts]
        return KernelGrade(target, found, self.seed, self.student.unconfined)

    # ---- on one input ----

    def _call(self, case: Case, order: str) -> dict[str, Any]:
        """Call the function on a case; return its results, with the float64 results in ``expected``."""
        expected = self.task.expected(case.given)
        out = self.student.call("run", case.given, _shapes(expected), order)
        outputs = out.get("outputs") if isinstance(out, dict) else None
        for p in self.task.parameters:
            got = outputs.get(p.name) if isinstance(outputs, dict) else None
            kind = (got.dtype, got.shape, got.is_meta) if isinstance(got, Tensor) else None
            if p.is_output and kind != (TYPES[p.type][0], expected[p.name].shape, False):
                raise ContractError("the kernels' process returned no result")
        if not all(type(out.get(name)) is int for name in COUNTED):
            raise ContractError("the kernels' process returned no counts")
        return out | {"expected": expected}

    def _legal(self, case: Case) -> Fault | None:
        first, second = (self._call(case, order) for order in ("ascending", case.order))
        for out in (first, second):
            if out["fault"] is not None:
                line, other = self._lines(out["sites"])
                return Fault(plain(out["fault"]), str(case), line, other)
        for name, value in first["outputs"].items():
            if (missing := unwritten(name, value)) is not None:
                return Fault(missing, str(case))
        if (name := self._unlike(first, second, case)) is not None:
            if self._unlike(first, self._call(case, "ascending"), case) is not None:
                return Fault(f"{name} changes if the function is called again: a variable keeps its value", str(case))
            return Fault(f"{name} depends on the order in which blocks and threads take turns", str(case))
        return None

    def _unlike(self, first: dict[str, Any], second: dict[str, Any], case: Case) -> str | None:
        """Return the name of a result that differs between two calls by more than the task's tolerance, or None."""
        for name, value in first["outputs"].items():
            allowed = self.task.allowed(case.given, value.double())
            if difference(second["outputs"][name], value.double(), allowed, torch.float32).ratio > 1:
                return name
        return None

    def _right(self, case: Case) -> Fault | None:
        out = self._call(case, "ascending")
        if out["fault"] is not None:  # graded in the part legal
            self._stopped += 1
            return None
        return self._off(out, case)

    def _off(self, out: dict[str, Any], case: Case) -> Fault | None:
        """Return a fault if a result is wrong by more than the task's tolerance."""
        for name, want in out["expected"].items():
            got = out["outputs"][name]
            apart = difference(got, want, self.task.allowed(case.given, want), torch.float32)
            if apart.ratio > 1:
                what = f"{name} is off by {apart.absolute:.3g}" if math.isfinite(apart.absolute) else f"{name} is wrong"
                where = {"index": apart.index, "expected": apart.want, "given": apart.got, "output": name}
                return Fault(unwritten(name, got) or what, str(case), **where)
        return None

    def _located(self, fault: Fault, case: Case) -> Fault:
        """Add the line of the last write to the fault of a wrong number."""
        if fault.index is None:
            return fault
        expected = self.task.expected(case.given)
        strides = torch.empty(expected[fault.output].shape, device="meta").stride()
        element = sum(map(math.prod, zip(fault.index, strides, strict=True)))
        line, _ = self._lines(self.student.call("writer", case.given, _shapes(expected), fault.output, element))
        finite = fault.given is None or math.isfinite(fault.given)
        hint = (FAR_FROM_ZERO if finite else OVERFLOW) if case.values == "large mean" else None
        return replace(fault, line=line, hint=hint)

    def _lines(self, sites: object) -> tuple[int | None, int | None]:
        """Return the lines in the file of an access, and of the access that it collides with."""
        found = [site[:1000] for site in sites if isinstance(site, list)] if isinstance(sites, list) else []
        if not all(type(address) is int for site in found for address in site):
            return None, None
        return lines_in(self.source, self.built, found)

    # ---- the questions ----

    def _search(self, name: str, question: Callable[[Case], Fault | None]) -> Part:
        """Grade a part by a search for the smallest input that fails."""
        from ..search import CUT_SHORT, search  # needs hypothesis
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
                with suppress(ContractError, Died):  # the code may behave differently this time
                    fault = self._located(fault, case)
            if found.cut_short:
                fault = replace(fault, on=f"{fault.on}{CUT_SHORT}")
        elif self._stopped:  # being right on some inputs only does not count
            status, fault = "not graded", STOPPED
        elif status == "timed out":
            tried = f"tried only {found.tried} of {self.examples} inputs"
            fault = Fault(f"too slow: {tried} in {self.timeout:g} s")
        return Part(name, status, float(status == "passed"), found.tried, fault)

    def _count(self) -> Part:
        """Grade ``efficient`` on typical sizes: compare the traffic with the least, and blocks with multiprocessors."""
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
        if out["fault"] is not None:
            return part("not graded", STOPPED)
        if (fault := self._off(out, case)) is not None:
            return part("failed", replace(fault, what=f"{fault.what} on the sizes on which traffic is counted"))
        arrays = [v for v in case.given.values() if isinstance(v, Tensor)] + list(out["outputs"].values())
        size = sum(array.numel() * array.itemsize for array in arrays)
        least, moved = self.task.passes * size, SECTOR * out["sectors"]
        if moved < NEAR * size:
            return part("failed", Fault(f"expected each array to be moved once, {size:,} bytes; moved {moved:,}"))
        shares = min(1.0, least / moved / NEAR), min(1.0, out["blocks"] / MULTIPROCESSORS)
        counted = {name: out[name] for name in COUNTED} | {"moved": moved, "least": int(least)}
        return Part("efficient", "measured", sum(shares) / len(shares), counted=counted)


def _shapes(results: dict[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in results.items()}


def _no_grade(target: str, parts: Sequence[str], fault: Fault, status: str, seed: int) -> KernelGrade:
    """Return the grade of a file that cannot run."""
    first, *others = parts
    rest = [Part(name, "not graded", fault=fault) for name in others]
    return KernelGrade(target, [Part(first, status, fault=fault), *rest], seed, None)
