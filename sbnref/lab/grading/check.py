"""Somebody's four functions, graded: which stages are right, and the smallest training step on which one is wrong.

The code runs in a process of its own (:mod:`sbnref.lab.sandbox`), under a time limit and, on Linux, a memory limit,
and confined: no network, no file but to read, no other process, not this package. It is given tensors and gives
tensors back. What they were to be is worked out here, and never told. Whatever happens there, an endless loop, a
crash, an exit, is a result here.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...impls import STAGES
from . import require_hypothesis
from .hints import where_to_look
from .report import Grade, StageGrade

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
    seed: int | None = None,
    forbid: Sequence[str] = (),
    allow: Sequence[str] = (),
    hide: Sequence[str | Path] = (),
    user: str | None = None,
) -> Grade:
    """Grade a file or module that defines the four stage functions.

    Args:
        target: ``'path/to/file.py'`` or the name of an importable module.
        stages: which of :data:`sbnref.impls.STAGES` to grade. Each is given exact inputs, whatever the others do.
        suite: whether to run the conformance suite over the whole layer as well, on real process groups.
        examples: how many training steps to try on each stage.
        timeout: seconds for a stage, after which it is ended.
        memory: gigabytes that the code may take, on Linux.
        seed: of the training steps and their numbers; None for another one each time.
        forbid: modules and functions that the code may not use, such as ``'torch.nn.functional.batch_norm'``.
        allow: those that it may use although they are forbidden, which ``'sbnref'`` is.
        hide: folders and files that the code is not to see, where it can be confined.
        user: the user that the code runs as if root grades; None for the user who grades.

    Returns:
        The report. However the code fails, it is in there.

    Raises:
        ValueError: no such file, no such stage, or nothing to grade in the file.
        RuntimeError: hypothesis, which does the search, is not installed.
    """
    require_hypothesis()
    unknown = [stage for stage in stages if stage not in STAGES]
    if unknown or not stages:
        raise ValueError(f"expected stages among {STAGES}, got {unknown or 'none'}")
    target = str(target)
    if target.endswith(".py") or os.sep in target:
        if not Path(target).is_file():
            raise ValueError(f"expected a Python file, but there is no file {target}")
        if not target.endswith(".py"):
            raise ValueError(f"expected a file whose name ends in .py, got {target}")
        target = str(Path(target).resolve())

    from ..sandbox.process import Job
    from .judge import Judge

    forbidden = [name for name in ("sbnref", *forbid) if name not in allow]
    todo = [stage for stage in STAGES if stage in stages] + ["layer"] * suite
    seed = secrets.randbelow(2**20) if seed is None else seed
    seconds = (len(todo) + 2) * timeout * (os.cpu_count() or 1)
    job = Job(target, os.getcwd(), memory, seconds, forbidden, hide=hide, user=user)
    judge = Judge(job, examples, timeout, seed)
    try:
        if (ended := judge.begin()) is not None:
            judge.results = dict.fromkeys(todo, ended)
        else:
            for stage in todo:
                judge.run_suite() if stage == "layer" else judge.grade(stage)
    finally:
        judge.close()
    return Grade(target, [_grade(stage, judge.results[stage]) for stage in todo], seed, judge.unconfined)


def template() -> str:
    """The text of a file to start from, in Python."""
    return Path(__file__).with_name("template.py").read_text(encoding="utf-8")


def _grade(stage: str, result: dict[str, Any]) -> StageGrade:
    failure = result["failure"]
    hint, section = (None, None) if failure is None else where_to_look(stage, result["status"], failure)
    return StageGrade(stage, result["status"], result["tried"], failure, hint, section)
