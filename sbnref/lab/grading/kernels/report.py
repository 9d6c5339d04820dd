"""The report on a file of kernels."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from ....debugging.report import Report, jsonable

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
    score: float
    tried: int = 0
    fault: Fault | None = None
    counted: dict[str, int] = field(default_factory=dict)


class KernelGrade(Report):
    """What :func:`sbnref.lab.grading.kernels.check.check_kernels` found. Printing it shows the report.

    Attributes:
        target: the file.
        parts: a :class:`Part` for each of ``legal``, ``right`` and ``efficient`` that was graded.
        seed: what the inputs follow from.
        unconfined: why the process of the kernels could not be confined; None where it was.
    """

    def __init__(self, target: str, parts: list[Part], seed: int, unconfined: str | None) -> None:
        self.target, self.parts, self.seed, self.unconfined = target, parts, seed, unconfined

    @property
    def score(self) -> float:
        """The mean of the parts', each of which a teacher may weigh otherwise."""
        return sum(part.score for part in self.parts) / len(self.parts)

    @property
    def passed(self) -> bool:
        """Whether nothing is wrong; being efficient is a matter of degree."""
        return all(part.status in ("passed", "measured") for part in self.parts)

    def to_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON has."""
        report = {
            "target": self.target,
            "score": self.score,
            "seed": self.seed,
            "unconfined": self.unconfined,
            "parts": [asdict(part) for part in self.parts],
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
            if part.counted:
                rows += _spending(part.counted)
            if rows:
                parts.append(Padding(_table(rows), (0, 0, 1, 4)))
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


def _spending(counted: dict[str, int]) -> list[tuple[str, str]]:
    moved, least = counted["moved"], counted["least"]
    others = f"{counted['accesses']:,} accesses by warps, {counted['conflicts']:,} bank conflicts"
    return [
        ("moved", f"{moved:,} bytes, {moved / least:.2f} times the least"),
        ("blocks", f"{counted['blocks']}; an H100 has 132 multiprocessors"),
        ("also", f"{others}, {counted['launches']} launches"),
    ]


def _table(rows: list[tuple[str, str]]) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    table.add_column(style="dim", min_width=8)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(name, Text(text))
    return table
