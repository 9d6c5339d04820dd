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
    """What is wrong with kernels.

    Attributes:
        what: in a sentence, with kernel, block and thread where the simulation refused something.
        on: the smallest input found on which it happens, in words; None where there is none to name.
        line: of the file, where it happens; None where that is not known.
        other: of the file, the line of the access that it collides with; None where there is none.
        output: the array in which numbers differ.
        index: where in it; None where it is not numbers that differ.
        expected: the number there.
        given: what the kernels wrote.
        hint: where to look; None where there is nothing to add.
        printed: what the process printed last, where it ended.
    """

    what: str
    on: str | None = None
    line: int | None = None
    other: int | None = None
    index: tuple[int, ...] | None = None
    expected: float | None = None
    given: float | None = None
    hint: str | None = None
    printed: str = ""
    output: str = "y"


@dataclass(frozen=True)
class Part:
    """One of the three questions: whether the kernels are legal, right and efficient.

    Attributes:
        name: which.
        status: ``'passed'``, ``'failed'``, ``'crashed'``, ``'timed out'`` or ``'not graded'``; ``'measured'`` for
            ``efficient``, which is a matter of degree.
        score: 0 to 1.
        tried: inputs.
        fault: what went wrong, on the smallest input found.
        counted: of ``efficient``, on the task's typical sizes: the bytes that the kernels ``moved``, in whole sectors,
            and the ``least`` that the task takes; ``accesses``, the instructions of warps that access global memory;
            bank ``conflicts``; ``launches``, and the ``blocks`` of the launch that moves most.
    """

    name: str
    status: str
    score: float = 0.0
    tried: int = 0
    fault: Fault | None = None
    counted: dict[str, int] = field(default_factory=dict)


@dataclass
class KernelGrade(GradeReport):
    """What :func:`sbnref.lab.grading.kernels.check.check_kernels` found. Printing it shows the report.

    Attributes:
        target: the file.
        parts: a :class:`Part` for each of ``legal``, ``right`` and ``efficient`` that was graded.
        seed: what the inputs follow from.
        unconfined: why the process of the kernels could not be confined; None where it was.
    """

    target: str
    parts: list[Part]
    seed: int
    unconfined: str | None

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
