"""Grade four functions in Python, and find the smallest training step on which one is wrong.

The code runs in a separate process (:mod:`sbnref.lab.sandbox`) with a time limit. On Linux it also has a memory limit
and is confined: no network, no write access, no other process, not this package. It gets tensors and returns tensors;
the expected ones are computed here. An endless loop, a crash or an exit of the process counts as a failure.
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
        stages: the stages to grade, of :data:`sbnref.impls.STAGES`. Each gets exact inputs, even if others are wrong.
        suite: whether to run the conformance suite over the whole layer as well, on real process groups.
        examples: the number of training steps to try on each stage.
        timeout: the time limit for a stage, in seconds.
        memory: the memory limit for the code, in gigabytes, on Linux.
        seed: the seed of the training steps and their numbers; None for a random one.
        forbid: modules and functions that the code may not use, such as ``'torch.nn.functional.batch_norm'``.
        allow: exceptions from ``forbid`` and from ``'sbnref'``, which is forbidden by default.
        hide: folders and files to hide from the code, if it can be confined.
        user: the user to run the code as, if root grades; None for the current user.

    Returns:
        The report, which also contains every failure of the code.

    Raises:
        ValueError: the file or a stage does not exist, or the file has nothing to grade.
        RuntimeError: hypothesis is not installed.
    """
    todo, seed = plan("stages", stages, STAGES, seed)
    todo += ["layer"] * suite
    target = str(target)
    if target.endswith(".py") or os.sep in target:
        if not Path(target).is_file():
            raise ValueError(f"expected a Python file, got {target}, which does not exist")
        if not target.endswith(".py"):
            raise ValueError(f"expected a file with the ending .py, got {target}")
        target = str(Path(target).resolve())

    from ..sandbox.process import Job
    from .judge import Judge  # needs hypothesis

    forbidden = [name for name in ("sbnref", *forbid) if name not in allow]
    seconds = (len(todo) + 2) * timeout
    job = Job(target, memory=memory, seconds=seconds, forbidden=forbidden, hide=hide, user=user)
    with closing(Judge(job, examples, timeout, seed)) as judge:
        return Grade(target, judge.grade_all(todo), seed, judge.student.unconfined)


def template() -> str:
    """Return the text of a Python file to start from."""
    return Path(__file__).with_name("template.py").read_text(encoding="utf-8")
