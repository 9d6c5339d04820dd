"""The report on a file of kernels."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ....debugging.report import Report, jsonable
from ...gpu_timing import Timed
from .efficiency import Efficiency, stands

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
        note: what was measured, in words.
    """

    name: str
    status: str
    score: float
    tried: int = 0
    fault: Fault | None = None
    note: str = ""


class KernelGrade(Report):
    """What :func:`sbnref.lab.grading.kernels.check.check_kernels` found. Printing it shows the report.

    Attributes:
        target: the file.
        parts: a :class:`Part` for each of ``legal``, ``right`` and ``efficient``.
        efficiency: what the kernels spend; None where it could not be counted.
        seed: what the inputs follow from.
        unconfined: why the process of the kernels could not be confined; None where it was.
        timed: how long they take on a GPU, where that was asked for and they got that far.
        untimed: why they were not timed; None if they were, or if timing was not requested.
    """

    def __init__(
        self, target: str, parts: list[Part], efficiency: Efficiency | None, seed: int, unconfined: str | None
    ) -> None:
        self.target, self.parts, self.efficiency = target, parts, efficiency
        self.seed, self.unconfined = seed, unconfined
        self.timed: list[Timed] = []
        self.untimed: str | None = None

    @property
    def score(self) -> float:
        """The mean of the parts', each of which a teacher may weigh otherwise."""
        return sum(part.score for part in self.parts) / len(self.parts)

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong; being efficient is a matter of degree, and so is being fast."""
        return self.untimed is None and all(part.status in ("passed", "measured") for part in self.parts)

    def to_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON has."""
        report = {
            "target": self.target,
            "score": self.score,
            "seed": self.seed,
            "unconfined": self.unconfined,
            "parts": [asdict(part) for part in self.parts],
            "efficiency": self.efficiency and self.efficiency.to_dict(),
            "timed": [asdict(timed) for timed in self.timed],
            "untimed": self.untimed,
        }
        return jsonable(report)

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.padding import Padding
        from rich.text import Text

        parts: list[RenderableType] = []
        told: Fault | None = None
        for part in self.parts:
            good = part.status == "passed" or (part.status == "measured" and part.score == 1)
            mark = Text("✓ ", "bold green") if good else Text("✗ ", "bold red")
            tried = f", tried on {part.tried} inputs" if part.tried else ""
            score = f", {part.score:.2f}" if part.status == "measured" else ""
            parts.append(mark + Text(f"{part.name}: ", "bold") + Text(f"{part.status}{tried}{score}"))
            rows = _rows(part.fault) if part.fault and part.fault is not told else []
            told = part.fault
            if part.note:
                rows.append(("moved", part.note))
            if part.name == "efficient" and self.efficiency is not None:
                rows += _spending(self.efficiency)
            if rows:
                parts.append(Padding(_table(rows), (0, 0, 1, 4)))
        if self.timed:
            parts.append(Text(f"on {self.timed[0].gpu}:", "bold"))
            parts.append(Padding(_table([("", str(timed)) for timed in self.timed]), (0, 0, 1, 4)))
        if self.untimed is not None:
            parts.append(Text(f"not timed: {self.untimed}", "yellow"))
        parts.append(Text(f"score {self.score:.2f}", "bold"))
        parts.append(Text(f"the same inputs again: --seed {self.seed}", "dim"))
        if self.unconfined is not None:
            parts.append(Text(f"not confined ({self.unconfined}): grade strangers' code in a container", "yellow"))
        return Group(*parts)


def _rows(fault: Fault) -> list[tuple[str, str]]:
    rows = [("wrong", fault.what)]
    if fault.line is not None:
        other = f"; the other access is in line {fault.other}" if fault.other is not None else ""
        rows.append(("line", f"{fault.line}{other}"))
    if fault.on is not None:
        rows.append(("on", fault.on))
    if fault.index is not None:
        rows.append(
            (
                "there",
                f"{fault.output}{list(fault.index)} is {_number(fault.given)}; expected {_number(fault.expected)}",
            )
        )
    if fault.hint is not None:
        rows.append(("hint", fault.hint))
    if fault.printed:
        rows.append(("printed", fault.printed))
    return rows


def _number(value: float | None) -> str:
    return "NaN" if value is None or value != value else f"{value:.7g}"


def _spending(efficiency: Efficiency) -> list[tuple[str, str]]:
    rows = []
    for spent in efficiency.spent:
        rows.append((spent.layout.replace("_", "-"), spent.sizes()))
        rows.append(("", stands(spent)))
    words = {-1: "too many accesses to look for bank conflicts", 0: "not used"}
    known = f"{efficiency.conflicts} bank conflicts in {efficiency.shared} accesses"
    return [*rows, ("shared", words.get(efficiency.shared, known))]


def _table(rows: list[tuple[str, str]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    table.add_column(style="dim", min_width=8)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(name, Text(text))
    return table
