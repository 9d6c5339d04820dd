"""Grade four functions in Python: which are right, and the smallest training step on which one is wrong.

The code runs in a process of its own (:mod:`sbnref.lab.sandbox`), under a time limit and, on Linux, a memory limit,
and confined: no network, no file but to read, no other process, not this package. It gets tensors and returns tensors.
The expected ones are computed here. An endless loop, a crash or an exit of that process is a result here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from ...impls import STAGES
from . import plan
from .report import Grade, StageGrade

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
    todo, seed = plan("stages", stages, STAGES, seed)
    todo += ["layer"] * suite
    target = str(target)
    if target.endswith(".py") or os.sep in target:
        if not Path(target).is_file():
            raise ValueError(f"expected a Python file, but there is no file {target}")
        if not target.endswith(".py"):
            raise ValueError(f"expected a file whose name ends in .py, got {target}")
        target = str(Path(target).resolve())

    from ..sandbox.process import Job
    from .judge import Judge  # takes hypothesis

    forbidden = [name for name in ("sbnref", *forbid) if name not in allow]
    seconds = (len(todo) + 2) * timeout
    job = Job(target, memory=memory, seconds=seconds, forbidden=forbidden, hide=hide, user=user)
    with closing(Judge(job, examples, timeout, seed)) as judge:
        return Grade(target, judge.grade_all(todo), seed, judge.student.unconfined)


def template() -> str:
    """The text of a file to start from, in Python."""
    return Path(__file__).with_name("template.py").read_text(encoding="utf-8")
