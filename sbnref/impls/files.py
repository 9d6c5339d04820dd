"""Bringing in what is in somebody's file or module: an implementation's stage functions, or a model to run."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import sysconfig
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from . import STAGES, Implementation


class NotAnImplementation(ValueError):
    """The file or module cannot be used: it is not there, cannot be imported, or has none of the functions."""


def load_functions(target: str) -> Implementation:
    """The stage functions of a file, ``path/to/file.py``, or of a module, ``package.module``.

    A function that it does not have raises :class:`NotImplementedError`.

    Raises:
        NotAnImplementation: see there.
    """
    try:
        module = import_target(target)
    except BaseException as error:  # SystemExit too
        raise NotAnImplementation(f"{target} cannot be imported: {error_in_words(error)}") from error
    found = {stage: getattr(module, stage) for stage in STAGES if callable(getattr(module, stage, None))}
    if not found:
        raise NotAnImplementation(
            f"expected {target} to define {', '.join(STAGES[:-1])} and {STAGES[-1]}, but it has none of them; "
            "`sbnref check --template` prints a file to start from"
        )
    return SimpleNamespace(**{stage: found.get(stage, _missing(stage)) for stage in STAGES})


def import_target(target: str) -> ModuleType:
    """The module of a file, ``path/to/file.py``, wherever it lies, or of a name."""
    if not target.endswith(".py"):
        return importlib.import_module(target)
    path = Path(target)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.append(str(path.parent))  # for what lies beside it; last, so that it hides nothing
    spec.loader.exec_module(module)
    return module


def _missing(stage: str) -> Callable[..., Any]:
    def missing(*_: Any) -> None:
        raise NotImplementedError(f"there is no function {stage}")

    return missing


def error_in_words(error: BaseException) -> str:
    """The error, and the innermost line of their code that it came through."""
    text = "".join(traceback.format_exception_only(error)).strip()
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_theirs(f.filename)]
    return (
        f"{text}\n  at {Path(frames[-1].filename).name}, line {frames[-1].lineno}: {frames[-1].line}"
        if frames
        else text
    )


def _is_theirs(filename: str) -> bool:
    """Whether a file is neither Python's nor installed nor ours."""
    others = [Path(__file__).parent.parent, *map(Path, map(sysconfig.get_path, ("stdlib", "purelib", "platlib")))]
    return not filename.startswith("<") and not any(Path(filename).is_relative_to(folder) for folder in others)
