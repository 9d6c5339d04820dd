"""The report: the stages that passed, the smallest step on which one failed, and a hint."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ...debugging.report import Report, jsonable

if TYPE_CHECKING:
    from rich.console import RenderableType

Rows = list[tuple[str, str]]


@dataclass(frozen=True)
class StageGrade:
    """The grade of one stage."""

    stage: str  #: its name; ``'layer'`` for the suite over the whole layer
    status: str  #: ``'passed'``, ``'failed'``, ``'not written'``, ``'crashed'`` or ``'timed out'``
    tried: int  #: number of training steps, or cases of the suite
    #: the failure on the smallest step found, by ``step`` and ``what``; if numbers differ ``quantity``, ``rank``,
    #: ``index``, ``expected``, ``given``; if the process ended ``printed``
    failure: dict[str, Any] | None = None
    hint: str | None = None  #: where to look
    section: str | None = None  #: the section of the derivations to read


class GradeReport(Report):
    """Base of the reports on functions in Python and on CUDA kernels, which are dataclasses."""

    seed: int
    unconfined: str | None

    @property
    @abstractmethod
    def score(self) -> float:
        """The score, 0 to 1."""

    def to_dict(self) -> dict[str, Any]:
        """Return everything in JSON's types."""
        return jsonable({**asdict(self), "score": self.score})  # type: ignore[call-overload]

    def _draw(
        self,
        results: Sequence[tuple[bool, str, str, Rows]],  # of each: whether it is good, its name, its outcome, a table
        total: str,  # the outcome of all
        cases: str,  # the seed's name for the cases: steps or inputs
    ) -> RenderableType:
        from rich.console import Group
        from rich.padding import Padding
        from rich.table import Table
        from rich.text import Text

        lines: list[RenderableType] = []
        for good, name, outcome, rows in results:
            mark = Text("✓ ", "bold green") if good else Text("✗ ", "bold red")
            lines.append(mark + Text(f"{name}: ", "bold") + Text(outcome))
            if rows:
                table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
                table.add_column(style="dim", min_width=8)
                table.add_column(overflow="fold")
                for heading, text in rows:
                    table.add_row(heading, Text(text))
                lines.append(Padding(table, (0, 0, 1, 4)))
        lines.append(Text(total, "bold"))
        lines.append(Text(f"to repeat these {cases}: --seed {self.seed}", "dim"))
        if self.unconfined is not None:
            lines.append(Text(f"not confined ({self.unconfined}): grade strangers' code in a container", "yellow"))
        return Group(*lines)


@dataclass
class Grade(GradeReport):
    """The result of :func:`check`. Printing it shows the report."""

    target: str  #: the file or module
    stages: list[StageGrade]
    seed: int = 0  #: of the training steps
    unconfined: str | None = None  #: why the code was not confined, or None

    @property
    def score(self) -> float:
        """The share of the stages that passed, 0 to 1."""
        return sum(stage.status == "passed" for stage in self.stages) / len(self.stages)

    @property
    def passed(self) -> bool:
        """Whether all stages passed."""
        return self.score == 1

    def __rich__(self) -> RenderableType:
        results = []
        for grade in self.stages:
            cases = "cases of the suite" if grade.stage == "layer" else "training steps"
            tried = f", tried on {grade.tried} {cases}" if grade.tried else ""
            results.append((grade.status == "passed", grade.stage, f"{grade.status}{tried}", _rows(grade)))
        passed = sum(good for good, *_ in results)
        return self._draw(results, f"{passed} of {len(results)} passed, score {self.score:.2f}", "steps")


def _rows(grade: StageGrade) -> Rows:
    """Return the failure of a stage, its numbers, and the hint."""
    if (failure := grade.failure) is None:
        return []
    place = ""
    if failure.get("rank") is not None:
        index = f", worst at index {tuple(failure['index'])}" if failure.get("index") is not None else ""
        place = f" (on rank {failure['rank']}{index})"
    rows = [("wrong", f"{failure['what']}{place}"), ("step", failure["step"])]
    rows += [(name, in_digits(failure[name])) for name in ("expected", "given") if failure.get(name) is not None]
    rows += [("printed", failure.get("printed", ""))]
    rows += [("hint", str(grade.hint)), ("read", f"Derivations: {grade.section}")]
    return [(name, text) for name, text in rows if text]


def in_digits(value: Any) -> str:
    """Return a number, or nested lists of numbers, with seven digits each."""
    if isinstance(value, list):
        return f"[{', '.join(map(in_digits, value))}]"
    return f"{value:.7g}"
