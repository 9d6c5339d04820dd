"""Somebody's four functions, graded: which stages are right, and the smallest training step on which one is wrong.

The code to grade is run in a process of its own (:mod:`sbnref.grading.grade`), under a time limit and, on Linux, a
memory limit. Whatever happens there, an endless loop, a crash, an exit, is a result here. That protects from accidents,
not from malice: the code runs with the rights of whoever grades it. Grade strangers' code in a container.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..impls import STAGES
from .apart import run_apart
from .hints import where_to_look
from .tell import Grade, StageGrade

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Grade", "StageGrade", "check", "template"]


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
        outcome = run_apart({**job, "stages": remaining, "died": list(deaths)}, timeout)
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


def _grade(stage: str, result: dict[str, Any]) -> StageGrade:
    failure = result["failure"]
    hint, section = (None, None) if failure is None else where_to_look(stage, result["status"], failure)
    return StageGrade(stage, result["status"], result["tried"], failure, hint, section)
