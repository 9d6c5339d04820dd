"""Somebody's four functions, graded: which stages are right, and the smallest training step on which one is wrong.

The code to grade is run in a process of its own (:mod:`sbnref.conformance.grade`), under a time limit and, on Linux, a
memory limit. Whatever happens there, an endless loop, a crash, an exit, is a result here. That protects from accidents,
not from malice: the code runs with the rights of whoever grades it. Grade strangers' code in a container.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from .conformance.functions import death_in_words
from .impls import STAGES
from .report import Report

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

START = 60  # seconds that a process may take until it can begin
KEPT = 8000  # characters of what the code printed


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
    """

    def __init__(self, target: str, stages: list[StageGrade]) -> None:
        self.target, self.stages = target, stages

    @property
    def score(self) -> float:
        """The share of the stages that passed, 0 to 1."""
        return sum(stage.status == "passed" for stage in self.stages) / len(self.stages)

    def to_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON has."""
        return {
            "target": self.target,
            "score": self.score,
            "stages": [asdict(stage) for stage in self.stages],
        }

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
        return Group(*parts)


def check(
    target: str | Path,
    stages: Sequence[str] = STAGES,
    *,
    suite: bool = False,
    examples: int = 100,
    timeout: float = 60,
    memory: float = 4,
) -> Grade:
    """Grade a file or module that defines the four stage functions.

    Args:
        target: ``'path/to/file.py'`` or the name of an importable module.
        stages: which of :data:`sbnref.impls.STAGES` to grade. Each is given exact inputs, whatever the others do.
        suite: whether to run the conformance suite over the whole layer as well, on real process groups.
        examples: how many training steps to try on each stage.
        timeout: seconds for a stage, after which it is ended.
        memory: gigabytes that the code may take, on Linux.

    Returns:
        The report. However the code fails, it is in there.

    Raises:
        ValueError: no such file, no such stage, or nothing to grade in the file.
        RuntimeError: hypothesis, which does the search, is not installed.
    """
    if importlib.util.find_spec("hypothesis") is None:
        raise RuntimeError(
            "sbnref check needs hypothesis, which searches for the smallest failure: pip install 'sbnref[check]'"
        )
    if unknown := [stage for stage in stages if stage not in STAGES]:
        raise ValueError(f"expected stages among {STAGES}, got {unknown}")
    target = str(target)
    if target.endswith(".py") or os.sep in target:
        if not Path(target).is_file():
            raise ValueError(f"expected a Python file, but there is no file {target}")
        if not target.endswith(".py"):
            raise ValueError(f"expected a file whose name ends in .py, got {target}")
        target = str(Path(target).resolve())

    todo = [stage for stage in STAGES if stage in stages] + ["layer"] * suite
    job = {"target": target, "folder": os.getcwd(), "examples": examples, "timeout": timeout, "memory": memory}
    results: dict[str, dict[str, Any]] = {}
    deaths: dict[str, dict[str, Any]] = {}  # of the process, by the stage that ended it
    while remaining := [stage for stage in todo if stage not in results]:
        outcome = _run({**job, "stages": remaining, "died": list(deaths)}, timeout)
        if outcome.refused is not None:
            raise ValueError(outcome.refused)
        results |= {stage: _smallest_death(deaths.get(stage), result) for stage, result in outcome.results.items()}
        if outcome.died is not None:
            at, result = outcome.died
            if at in deaths or at not in STAGES or not hasattr(os, "fork"):
                results |= {stage: deaths.get(at, result) for stage in (remaining if at == "import" else [at])}
            deaths.setdefault(at, result)  # the next process tries that stage's steps in forks, and then goes on
    return Grade(target, [_grade(stage, results[stage]) for stage in todo])


def _smallest_death(death: dict[str, Any] | None, result: dict[str, Any]) -> dict[str, Any]:
    """A stage's result; where it ended its process, on the smallest step that does, if that was found in the forks."""
    if death is None:
        return result
    if result["status"] != "failed":  # it does not happen every time
        return death
    printed = death["failure"]["printed"]
    return {**death, "tried": result["tried"], "failure": {**result["failure"], "printed": printed}}


def template() -> str:
    """The text of a file to start from."""
    return Path(__file__).with_name("template.py").read_text(encoding="utf-8")


@dataclass(frozen=True)
class _Outcome:
    results: dict[str, dict[str, Any]]  # by stage
    refused: str | None  # why the target cannot be graded
    died: tuple[str, dict[str, Any]] | None  # the stage in which the process ended, and what became of it


def _run(job: dict[str, Any], timeout: float) -> _Outcome:
    """Grade in a process of its own, until it is done, dies, or has been silent for too long."""
    with tempfile.TemporaryDirectory(prefix="sbnref-check-") as folder:
        paths = {name: Path(folder, name) for name in ("job", "results", "trying")}
        paths["job"].write_text(json.dumps({**job, "results": str(paths["results"]), "trying": str(paths["trying"])}))
        process = subprocess.Popen(
            [sys.executable, "-X", "faulthandler", "-m", "sbnref.conformance.grade", str(paths["job"])],
            cwd=folder,  # so that nothing beside the graded file hides a module of Python's or ours
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert process.stdout is not None
        tail = _Tail(process.stdout)
        seen, deadline, late = 0, time.monotonic() + timeout + START, False
        try:
            while process.poll() is None and not late:
                time.sleep(0.05)
                lines = len(_read(paths["results"]))
                if lines > seen:
                    seen, deadline = lines, time.monotonic() + timeout
                late = time.monotonic() > deadline
        finally:
            _end(process)
        lines_read = [line for line in map(_parse, _read(paths["results"])) if line is not None]
        trying = "".join(_read(paths["trying"]))
        printed = tail.text()
    died = None
    if not any("done" in line for line in lines_read):
        started = [line["starting"] for line in lines_read if "starting" in line]
        what = f"was still running after {timeout:g} s and was ended" if late else death_in_words(process.returncode)
        failure = {"step": trying, "what": what, "printed": printed, "features": []}
        result = {"status": "timed out" if late else "crashed", "failure": failure, "tried": 0}
        died = started[-1] if started else "import", result
    refused = next((line["refused"] for line in lines_read if "refused" in line), None)
    return _Outcome({line["stage"]: line for line in lines_read if "stage" in line}, refused, died)


class _Tail:
    """Reads all that a process prints, so that it never has to wait, and keeps the end."""

    def __init__(self, pipe: IO[bytes]) -> None:
        self._kept = b""
        self._pipe = pipe
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        while chunk := os.read(self._pipe.fileno(), 1 << 16):
            self._kept = (self._kept + chunk)[-KEPT:]

    def text(self) -> str:
        """What was printed last, or where the interpreter was when it crashed."""
        self._thread.join(1)  # no longer: a process that was left behind may hold the pipe
        text = self._kept.decode(errors="replace").strip()
        crash = text.find("Fatal Python error")
        lines = text[crash:].splitlines()[:6] if crash >= 0 else text.splitlines()[-6:]
        return "\n".join(line[-200:] for line in lines)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and those it has started."""
    with suppress(ProcessLookupError, PermissionError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    process.wait()


def _read(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []


def _parse(line: str) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:  # cut off where the process ended
        return None
    return value if isinstance(value, dict) else None


def _grade(stage: str, result: dict[str, Any]) -> StageGrade:
    failure = result["failure"]
    hint, section = (None, None) if failure is None else _hint(stage, result["status"], failure)
    return StageGrade(stage, result["status"], result["tried"], failure, hint, section)


SECTIONS = {
    "forward_stats": "One all-reduce",
    "forward_apply": "Combining means and variances",
    "backward_stats": "The backward pass through a collective",
    "backward_apply": "The backward pass through a collective",
    "layer": "Batch norm, and what splitting the batch breaks",
}


def _hint(stage: str, status: str, failure: dict[str, Any]) -> tuple[str, str]:
    """Where to look, from what the smallest failing step still has: each of its features matters."""
    features, quantity, what = set(failure["features"]), failure.get("quantity"), failure["what"]
    section = SECTIONS[stage]
    if status == "not written":
        return "Its arguments and result are described in the template: sbnref check --template.", section
    if status in ("crashed", "timed out"):
        return "Call the function yourself on the step above, from a debugger or with prints.", section
    if "two different results" in what:
        return (
            "Something is read before it was written, or sums are added up in an order that changes.",
            "Floating point",
        )
    if "running" in (quantity or "") or quantity == "num_batches_tracked":
        if "all empty" in features:
            return "A step in which every rank is empty changes nothing.", "Running statistics that agree on all ranks"
        return (
            "Use the group's M, not this rank's m, and correct the variance by M / (M - 1).",
            "Running statistics that agree on all ranks",
        )
    if quantity is not None and "half" in features:
        return "Only half precision fails: sum in float32, and round to the input's dtype last.", "Floating point"
    if quantity is not None and "float64" in features:
        return "Only float64 fails: something on the way is float32.", "Floating point"
    if quantity is not None and "large mean" in features:
        return "Only a mean far from zero fails: subtract first, E[x^2] - E[x]^2 cancels.", "Floating point"
    if failure.get("relative") is not None and failure["relative"] < 1e-3:
        return (
            "Nearly right: precision is lost. Sum deviations from the mean, and carry statistics in float64.",
            "Floating point",
        )
    if "layout" in features:
        return "Only strided inputs fail: index by x.stride(), or make x contiguous first.", section
    if "empty rank" in features or "all empty" in features:
        if stage == "backward_apply" and "default" in features:
            return "With an empty rank in 'default', W is not D: the last term in the bracket counts.", section
        if stage == "forward_apply":
            return (
                "Only empty ranks fail: divide by the divisor, and where it is None by W, but by no less than 1.",
                section,
            )
        return "Only empty ranks fail: m and w are 0 there, and nothing may be divided by them.", section
    return {
        "forward_stats": "The payload is [w mean, w (var + mean^2), w, m], with the biased variance.",
        "forward_apply": "mean = S1 / D, var = (S2 - 2 mean S1 + mean^2 W) / D, y = gamma (x - mean) / sigma + beta.",
        "backward_stats": "The payload is [sum g, sum g xhat], in this order.",
        "backward_apply": "dx = gamma / sigma { g - k / D [A + xhat B - (B / sigma) mean (1 - W/D)] }.",
        "layer": "The stages are right one by one; look at what the cases named above have in common.",
    }[stage], section


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
