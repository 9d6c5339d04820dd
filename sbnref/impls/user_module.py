"""Import a user's file or module, and describe its errors. It imports nothing of ours: graded code is loaded by it."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import sysconfig
import traceback
from pathlib import Path
from types import ModuleType

OURS = Path(__file__).resolve().parents[1]  # the package; beside what is graded, a folder above its own
NOT_THEIRS = [OURS, *map(Path, map(sysconfig.get_path, ("stdlib", "purelib", "platlib")))]


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
    return not filename.startswith("<") and not any(Path(filename).is_relative_to(folder) for folder in NOT_THEIRS)
