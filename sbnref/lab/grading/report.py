"""The report: which stages passed, the smallest step on which one failed, and where to look."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from ...debugging.report import Report, jsonable

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class StageGrade:
    """How one stage did.

    Attributes:
        stage: its name; ``'layer'`` for the suite over the whole layer.
        status: ``'passed'``, ``'failed'``, ``'not written'``, ``'crashed'`` or ``'timed out'``.
        tried: the training steps (of the suite: the cases) that it was tried on.
        failure: what went wrong on the smallest step found, None where it passed: ``step``, ``what``; where numbers
            differ ``quantity``, ``rank``, ``index``, ``expected``, ``given``; where the process ended ``printed``.
        hint: where to look, None where it passed.
        section: the section of the derivations to read, None where it passed.
    """

    stage: str
    status: str
    tried: int
    failure: dict[str, Any] | None
    hint: str | None
    section: str | None


class Grade(Report):
    """What :func:`check` found. Printing it shows the report.

    Attributes:
        target: the file or module.
        stages: a :class:`StageGrade` for each.
        seed: what the training steps follow from.
        unconfined: why the code could not be confined, and might have done more than give wrong results; None where it
            was.
    """

    def __init__(self, target: str, stages: list[StageGrade], seed: int = 0, unconfined: str | None = None) -> None:
        self.target, self.stages, self.seed, self.unconfined = target, stages, seed, unconfined

    @property
    def score(self) -> float:
        """The share of the stages that passed, 0 to 1."""
        return sum(stage.status == "passed" for stage in self.stages) / len(self.stages)

    @property
    def passed(self) -> bool:
        """Whether all stages did."""
        return self.score == 1

    def to_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON has."""
        report = {
            "target": self.target,
            "score": self.score,
            "seed": self.seed,
            "unconfined": self.unconfined,
            "stages": [asdict(stage) for stage in self.stages],
        }
        return jsonable(report)

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.padding import Padding
        from rich.text import Text

        parts: list[RenderableType] = []
        for grade in self.stages:
            passed = grade.status == "passed"
            mark = Text("✓ ", "bold green") if passed else Text("✗ ", "bold red")
            of = "cases of the suite" if grade.stage == "layer" else "training steps"
            tried = f", tried on {grade.tried} {of}" if grade.tried else ""
            parts.append(mark + Text(f"{grade.stage}: ", "bold") + Text(f"{grade.status}{tried}"))
            if grade.failure is not None:
                parts.append(Padding(_explain(grade), (0, 0, 1, 4)))
        passed_stages = sum(grade.status == "passed" for grade in self.stages)
        parts.append(Text(f"{passed_stages} of {len(self.stages)} passed, score {self.score:.2f}", "bold"))
        parts.append(Text(f"the same steps again: --seed {self.seed}", "dim"))
        if self.unconfined is not None:
            parts.append(Text(f"not confined ({self.unconfined}): grade strangers' code in a container", "yellow"))
        return Group(*parts)


def _explain(grade: StageGrade) -> RenderableType:
    """The failure of a stage, its numbers, and the hint."""
    from rich.table import Table
    from rich.text import Text

    assert grade.failure is not None
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    table.add_column(style="dim", min_width=8)
    table.add_column(overflow="fold")
    failure = grade.failure
    place = ""
    if failure.get("rank") is not None:
        index = f", worst at index {tuple(failure['index'])}" if failure.get("index") is not None else ""
        place = f" (on rank {failure['rank']}{index})"
    rows = [("wrong", f"{failure['what']}{place}"), ("step", failure["step"])]
    rows += [(name, _numbers(failure[name])) for name in ("expected", "given") if failure.get(name) is not None]
    rows += [("printed", failure.get("printed", ""))]
    rows += [("hint", str(grade.hint)), ("read", f"Derivations: {grade.section}")]
    for name, text in rows:
        if text:
            table.add_row(name, Text(text))
    return table


def _numbers(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_numbers, value))}]"
    return f"{value:.7g}"
