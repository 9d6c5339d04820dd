"""The report on a file of kernels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..report import GradeReport, Rows, in_digits

if TYPE_CHECKING:
    from rich.console import RenderableType

PARTS = ("legal", "right", "efficient")


@dataclass(frozen=True)
class Fault:
    """What is wrong with kernels."""

    what: str  #: in a sentence, with kernel, block and thread where the simulation refused something
    on: str | None = None  #: the smallest input found on which it happens, in words
    line: int | None = None  #: of the file, where it happens
    other: int | None = None  #: the line of the access that it collides with
    index: tuple[int, ...] | None = None  #: where numbers differ
    expected: float | None = None  #: the number there
    given: float | None = None  #: what the kernels wrote
    hint: str | None = None  #: where to look
    printed: str = ""  #: last, by a process that ended
    output: str = "y"  #: the array in which numbers differ


@dataclass(frozen=True)
class Part:
    """One of the three questions: whether the kernels are legal, right and efficient."""

    name: str
    #: ``'passed'``, ``'failed'``, ``'crashed'``, ``'timed out'`` or ``'not graded'``; ``'measured'`` for ``efficient``,
    #: which is a matter of degree
    status: str
    score: float = 0.0  #: 0 to 1
    tried: int = 0  #: inputs
    fault: Fault | None = None  #: on the smallest input found
    #: of ``efficient``, on the task's typical sizes, the bytes that the kernels ``moved``, in whole sectors, and the
    #: ``least`` that the task takes; ``accesses``, the instructions of warps that access global memory; bank
    #: ``conflicts``; ``launches``, and the ``blocks`` of the launch that moves most
    counted: dict[str, int] = field(default_factory=dict)


@dataclass
class KernelGrade(GradeReport):
    """What :func:`sbnref.lab.grading.kernels.check.check_kernels` found. Printing it shows the report."""

    target: str  #: the file
    parts: list[Part]  #: of ``legal``, ``right`` and ``efficient`` those that were graded
    seed: int  #: of the inputs
    unconfined: str | None  #: why the process of the kernels was not confined

    @property
    def score(self) -> float:
        """The mean of the parts', each of which a teacher may weigh otherwise."""
        return sum(part.score for part in self.parts) / len(self.parts)

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong; being efficient is a matter of degree."""
        return all(part.status in ("passed", "measured") for part in self.parts)

    def __rich__(self) -> RenderableType:
        results: list[tuple[bool, str, str, Rows]] = []
        shown: Fault | None = None
        for part in self.parts:
            good = part.status == "passed" or (part.status == "measured" and part.score == 1)
            tried = f", tried on {part.tried} inputs" if part.tried else ""
            score = f", {part.score:.2f}" if part.status == "measured" else ""
            rows = _wrong(part.fault) if part.fault and part.fault is not shown else []
            shown = part.fault
            results.append((good, part.name, f"{part.status}{tried}{score}", rows + _counted(part.counted)))
        return self._draw(results, f"score {self.score:.2f}", "inputs")


def _wrong(fault: Fault) -> Rows:
    line = there = None
    if fault.line is not None:
        other = f"; the other access is in line {fault.other}" if fault.other is not None else ""
        line = f"{fault.line}{other}"
    if fault.index is not None:
        given, expected = in_digits(fault.given), in_digits(fault.expected)
        there = f"{fault.output}{list(fault.index)} is {given}; expected {expected}"
    rows = {"wrong": fault.what, "line": line, "on": fault.on, "there": there, "hint": fault.hint}
    return [(name, text) for name, text in (rows | {"printed": fault.printed}).items() if text]


def _counted(counted: dict[str, int]) -> Rows:
    if not counted:
        return []
    moved, least = counted["moved"], counted["least"]
    others = f"{counted['accesses']:,} accesses by warps, {counted['conflicts']:,} bank conflicts"
    return [
        ("moved", f"{moved:,} bytes, {moved / least:.2f} times the least"),
        ("blocks", f"{counted['blocks']}; an H100 has 132 multiprocessors"),
        ("also", f"{others}, {counted['launches']} launches"),
    ]
