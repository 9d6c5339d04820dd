"""Load the stage functions of a user's file or module."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from . import STAGES, Implementation
from .user_module import error_in_words, import_target


class NotAnImplementation(ValueError):
    """The file or module is missing, cannot be imported, or defines none of the functions."""


def load_functions(target: str) -> Implementation:
    """Return the stage functions of a file, ``path/to/file.py``, or of a module, ``package.module``.

    A missing function is replaced by one that raises :class:`NotImplementedError`, which the grader reports as "not
    written".

    Raises:
        NotAnImplementation: the file or module is missing, cannot be imported, or defines none of the functions.
    """
    try:
        module = import_target(target)
    except BaseException as error:  # SystemExit too
        raise NotAnImplementation(f"{target} cannot be imported: {error_in_words(error)}") from error
    found = {stage: getattr(module, stage) for stage in STAGES if callable(getattr(module, stage, None))}
    if not found:
        raise NotAnImplementation(
            f"expected {target} to define {', '.join(STAGES[:-1])} and {STAGES[-1]}, found none of them; "
            "`sbnref lab template functions` prints a file to start from"
        )
    return SimpleNamespace(**{stage: found.get(stage, not_written(stage)) for stage in STAGES})


def not_written(stage: str) -> Callable[..., Any]:
    """Return what stands for a missing function: one that raises :class:`NotImplementedError`."""

    def missing(*_: Any) -> None:
        raise NotImplementedError(f"there is no function {stage}")

    return missing
