"""Grade a task's function: whether it is legal, right and efficient, and the smallest input on which it is not."""

from __future__ import annotations

import math
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ....conformance.stages import ContractError, difference
from ... import Kernels
from ...sandbox.process import Died, plain
from ...tasks import TYPES, Task
from ...watching import unwritten
from .. import require_hypothesis
from .check import STOPPED, Judge, no_grade, status_of
from .job import Functions, RefusedFile, job_of
from .report import PARTS, Fault, KernelGrade, Part

FEW = 16  # elements: as many as a report shows
NEAR = 0.9  # such a share of the least traffic counts as all of it
_FUNCTIONS = Functions(
    """from sbnref.lab.task_call import TaskWorker

run = TaskWorker({built}, {signature}).run
""",
    ("run",),
)


def check_task(
    target: str | Path,
    task: Task,
    parts: Sequence[str] = PARTS,
    *,
    examples: int = 100,
    timeout: float = 60,
    memory: float = 4,
    seed: int | None = None,
    repro: Path | None = None,
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

    Returns:
        The report. However the kernels fail, it is in there.

    Raises:
        ValueError: there is no such file.
        RuntimeError: hypothesis or a C++ compiler is missing.
    """
    require_hypothesis()
    file = Path(target).resolve()
    if not file.is_file():
        raise ValueError(f"expected a file of kernels, but there is no file {target}")
    seed = secrets.randbelow(2**20) if seed is None else seed
    try:
        with job_of(str(target), Kernels(file), _FUNCTIONS, memory, 5 * timeout, task=task) as (job, compiled):
            judge = TaskJudge(compiled, job, examples, timeout, seed)
            judge.task = task
            try:
                grade = judge.grade(str(target), parts)
            finally:
                judge.student.close()
    except RefusedFile as refused:
        return no_grade(str(target), parts, refused.fault, seed)
    if repro is not None and judge.smallest is not None:
        repro.write_text(_program(file, task, judge.smallest, next(p.fault for p in grade.parts if p.fault)))
    return grade


@dataclass(frozen=True)
class Case:
    """One input: the arrays and the numbers, the kind of numbers that were drawn, and the order of turns."""

    given: dict[str, Any]
    values: str
    order: str

    @property
    def is_small(self) -> bool:
        """Whether a report can show it."""
        return all(v.numel() <= FEW for v in self.given.values() if isinstance(v, Tensor))

    def __str__(self) -> str:
        words = []
        for name, value in self.given.items():
            if not isinstance(value, Tensor):
                words.append(f"{name} = {value}")
            elif value.numel() <= FEW:
                words.append(f"{name} = {_numbers(value.tolist())}")
            else:
                words.append(f"{name} of shape {tuple(value.shape)}, values: {self.values}")
        turns = "" if self.order == "ascending" else f", threads and blocks in the order {self.order}"
        return ", ".join(words) + turns


class _Drawn:
    """Draws inputs by hypothesis, the simplest first."""

    SIZES = (1, 2, 3, 4, 5, 7, 8, 31, 32, 33, 64, 100, 257)

    def __init__(self, draw: Callable[..., Any], seed: int) -> None:
        from hypothesis import strategies

        self._draw, self._strategies = draw, strategies
        self.values = draw(strategies.sampled_from(["whole numbers", "normal", "large mean"]))
        self._generator = torch.Generator().manual_seed(seed + draw(strategies.integers(0, 3)))

    def size(self, *sizes: int) -> int:
        size: int = self._draw(self._strategies.sampled_from(sizes or self.SIZES))
        return size

    def array(self, *shape: int) -> Tensor:
        if self.values == "whole numbers":
            return torch.randint(-4, 5, shape, generator=self._generator).double()
        x = torch.randn(shape, generator=self._generator, dtype=torch.float64)
        return x + (1000 if self.values == "large mean" else 0)


class _Typical:
    """Draws the sizes on which kernels are counted."""

    def __init__(self, sizes: Sequence[int]) -> None:
        self._sizes, self._generator = iter(sizes), torch.Generator().manual_seed(0)

    def size(self, *_: int) -> int:
        return next(self._sizes)

    def array(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator, dtype=torch.float64)


class TaskJudge(Judge):
    """Answers the three questions about a task's function."""

    task: Task
    smallest: Case | None = None

    def _inputs(self) -> Any:
        from hypothesis import strategies

        @strategies.composite
        def draw_case(draw: Callable[..., Any]) -> Case:
            source = _Drawn(draw, 4 * self.seed)
            given = self.task.given(source)
            return Case(given, source.values, draw(strategies.sampled_from(["descending", "random:1", "random:2"])))

        return draw_case()

    def _call(self, case: Case, order: str) -> dict[str, Any]:
        """What the function made of a case; float64 results are in ``expected``."""
        expected = self.task.expected(case.given)
        out = self.student.call("run", case.given, {name: list(t.shape) for name, t in expected.items()}, order)
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
        return out | {"expected": expected}

    def _legal(self, case: Case) -> Fault | None:
        fault = self._not_legal(case)
        self.smallest = case if fault is not None and case.is_small else self.smallest
        return fault

    def _not_legal(self, case: Case) -> Fault | None:
        first, second = (self._call(case, order) for order in ("ascending", case.order))
        for out in (first, second):
            if out["refused"] is not None:
                line, other = self._lines(out["frames"])
                return Fault(plain(out["refused"]), str(case), line, other)
        for name, value in first["outputs"].items():
            if (never := unwritten(value)).any():
                index = tuple(never.nonzero()[0].tolist())
                return Fault(f"some elements of {name} are never written, such as {name}{list(index)}", str(case))
            if not torch.equal(value.nan_to_num(), second["outputs"][name].nan_to_num()):
                return Fault(f"{name} depends on the order in which blocks and threads take turns", str(case))
        return None

    def _right(self, case: Case) -> Fault | None:
        out = self._call(case, "ascending")
        if out["refused"] is not None:  # which is for the other question
            self._stopped += 1
            return None
        fault = self._off(out, case)
        self.smallest = case if fault is not None and case.is_small else self.smallest
        return fault

    def _off(self, out: dict[str, Any], case: Case) -> Fault | None:
        for name, want in out["expected"].items():
            got = out["outputs"][name]
            allowed = self.task.atol + self.task.rtol * want.abs() + torch.finfo(torch.float32).tiny
            apart = difference(got, want, allowed, torch.float32)
            if apart.share > 1:
                what = f"{name} is off by {apart.absolute:.3g}" if math.isfinite(apart.absolute) else f"{name} is wrong"
                where = {"index": apart.index, "expected": apart.want, "given": apart.got, "output": name}
                return Fault(what, str(case), **where)
        return None

    def _located(self, fault: Fault, case: Case) -> Fault:
        return fault

    def _count(self) -> tuple[None, Part]:
        self.student.apart, self.student.deadline = None, time.monotonic() + self.timeout
        case = Case(self.task.given(_Typical(self.task.typical)), "normal", "ascending")
        try:
            out = self._call(case, "ascending")
        except (ContractError, Died) as error:
            status = status_of(error) if isinstance(error, Died) else "failed"
            return None, Part("efficient", status, 0.0, 0, Fault(str(error)))
        if out["refused"] is not None:
            return None, Part("efficient", "not graded", 0.0, 0, STOPPED)
        if (fault := self._off(out, case)) is not None:
            return None, Part("efficient", "failed", 0.0, 0, replace(fault, what=f"{fault.what} where it is counted"))
        arrays = [v for v in case.given.values() if isinstance(v, Tensor)] + list(out["outputs"].values())
        least = sum(array.numel() * array.itemsize for array in arrays)
        moved, launches = out["moved"], out["launches"]
        if type(moved) is not int or moved < NEAR * least:
            return None, Part(
                "efficient", "failed", 0.0, 0, Fault(f"moves {moved} bytes, and the arrays have {least:,}")
            )
        note = f"{moved / least:.2f} times the least, which is {least:,} bytes; {launches} launches"
        return None, Part("efficient", "measured", min(1.0, least / moved / NEAR), note=note)


def _numbers(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_numbers, value))}]"
    return f"{value:.7g}"


# Of a program that shows a failure.
_COMPARE = """    std::vector<{type}> {name}_given({n});
    cudaMemcpy({name}_given.data(), {name}, {n} * sizeof({type}), cudaMemcpyDeviceToHost);
    for (int i = 0; i < {n}; ++i) {{
        const double given = {name}_given[i], expected = {name}_expected[i];
        if (given == expected || fabs(given - expected) <= {atol} + {rtol} * fabs(expected)) continue;
        printf("{name}[%d] is %g; expected %g\\n", i, given, expected);
        wrong = 1;
    }}"""


def _program(file: Path, task: Task, case: Case, fault: Fault) -> str:
    """A CUDA program that calls a task's function on a case, and compares the results with the expected ones."""
    expected = task.expected(case.given)
    first: list[str] = []
    compare: list[str] = []
    names: list[str] = []
    for p in task.parameters:
        names.append(p.name)
        if p.is_array:
            compare.insert(0, f"    cudaFree({p.name});")
        else:
            first.append(f"    const {p.type} {p.name} = {case.given[p.name]};")
            continue
        values = expected[p.name] if p.is_output else case.given[p.name]
        numbers = ", ".join(_literal(v) for v in values.flatten().tolist()) or "0"
        kind = p.type if not p.is_output else "double"
        first.append(f"    const {kind} {p.name}_{'expected' if p.is_output else 'values'}[] = {{{numbers}}};")
        first.append(f"    {p.type}* {p.name};\n    cudaMalloc(&{p.name}, {values.numel()} * sizeof({p.type}));")
        if not p.is_output:
            size = f"{values.numel()} * sizeof({p.type})"
            first.append(f"    cudaMemcpy({p.name}, {p.name}_values, {size}, cudaMemcpyHostToDevice);")
            continue
        compare.insert(0, _COMPARE.format(name=p.name, type=p.type, n=values.numel(), atol=task.atol, rtol=task.rtol))
    body = "\n".join([*first, f"    {task.name}({', '.join(names)});", "    int wrong = 0;", *compare])
    return (
        f"// {' '.join(fault.what.split())}. Run it with: sbnref lab run repro.cu\n"
        f'#include "{file}"\n\n#include <cstdio>\n#include <vector>\n\nint main() {{\n{body}\n    return wrong;\n}}\n'
    )


def _literal(value: float) -> str:
    return repr(value) if math.isfinite(value) else "NAN" if math.isnan(value) else f"{'-' * (value < 0)}INFINITY"
