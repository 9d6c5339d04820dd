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
    """A fault of kernels."""

    what: str  #: a sentence, with kernel, block and thread if the simulation found it
    on: str | None = None  #: the smallest input with the fault, in words
    line: int | None = None  #: the line in the file
    other: int | None = None  #: the line of the access that it collides with
    index: tuple[int, ...] | None = None  #: the place of a wrong number
    expected: float | None = None  #: the right number there
    given: float | None = None  #: the kernels' number there
    hint: str | None = None  #: where to look
    printed: str = ""  #: the last output of a process that ended
    output: str = "y"  #: the array with the wrong number


@dataclass(frozen=True)
class Part:
    """The grade of one part: legal, right or efficient."""

    name: str
    #: ``'passed'``, ``'failed'``, ``'crashed'``, ``'timed out'`` or ``'not graded'``; ``'measured'`` for ``efficient``,
    #: which has a score instead
    status: str
    score: float = 0.0  #: 0 to 1
    tried: int = 0  #: number of inputs
    fault: Fault | None = None  #: on the smallest input found
    #: for ``efficient``, on the task's typical sizes: the bytes that the kernels ``moved``, in whole sectors, and the
    #: ``least`` for the task; ``accesses``, the instructions of warps that access global memory; bank ``conflicts``;
    #: ``launches``, and the ``blocks`` of the launch that moves most
    counted: dict[str, int] = field(default_factory=dict)


@dataclass
class KernelGrade(GradeReport):
    """The result of :func:`sbnref.lab.grading.kernels.check.check_kernels`. Printing it shows the report."""

    target: str  #: the file
    parts: list[Part]  #: the graded parts, of ``legal``, ``right`` and ``efficient``
    seed: int  #: of the inputs
    unconfined: str | None  #: why the process of the kernels was not confined, or None

    @property
    def score(self) -> float:
        """The mean of the parts' scores, with equal weights."""
        return sum(part.score for part in self.parts) / len(self.parts)

    @property
    def passed(self) -> bool:
        """Whether no part has a fault; ``efficient`` passes with any score."""
        return all(part.status in ("passed", "measured") for part in self.parts)

    def __rich__(self) -> RenderableType:
        results: list[tuple[bool, str, str, Rows]] = []
        shown: Fault | None = None
        for part in self.parts:
            good = part.status in ("passed", "measured")
            tried = f", tried on {part.tried} inputs" if part.tried else ""
            score = f", {part.score:.2f}" if part.status == "measured" else ""
            rows = _wrong(part.fault) if part.fault and part.fault is not shown else []
            shown = part.fault
            results.append((good, part.name, f"{part.status}{tried}{score}", rows + _counted(part.counted)))
        return self._draw(results, f"score {self.score:.2f}", "inputs")


def _wrong(fault: Fault) -> Rows:
    line = value = None
    if fault.line is not None:
        other = f"; the other access is in line {fault.other}" if fault.other is not None else ""
        line = f"{fault.line}{other}"
    if fault.index is not None:
        given, expected = in_digits(fault.given), in_digits(fault.expected)
        value = f"{fault.output}{list(fault.index)} is {given}; expected {expected}"
    rows = {"wrong": fault.what, "line": line, "input": fault.on, "value": value, "hint": fault.hint}
    return [(name, text) for name, text in (rows | {"printed": fault.printed}).items() if text]


def _counted(counted: dict[str, int]) -> Rows:
    if not counted:
        return []
    moved, least = counted["moved"], counted["least"]
    others = f"{counted['accesses']:,} accesses by warps, {counted['conflicts']:,} bank conflicts"
    return [
        ("moved", f"{moved:,} bytes, {moved / least:.2f} times the least"),
        ("blocks", f"{counted['blocks']}; an H100 has 132 multiprocessors"),
        ("also", f"{others}, {counted['launches']} launch{'es' * (counted['launches'] > 1)}"),
    ]
