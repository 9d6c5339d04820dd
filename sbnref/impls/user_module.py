"""Import a user's file or module, and describe its errors. It imports nothing of sbnref: it also loads graded code."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import sysconfig
import traceback
from pathlib import Path
from types import ModuleType

OURS = Path(__file__).resolve().parents[1]  # the package; beside graded code, the folder above this file's
NOT_THEIRS = [OURS, *map(Path, map(sysconfig.get_path, ("stdlib", "purelib", "platlib")))]


def import_target(target: str) -> ModuleType:
    """Import a file, ``path/to/file.py``, from any folder, or a module by name."""
    if not target.endswith(".py"):
        return importlib.import_module(target)
    path = Path(target)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.append(str(path.parent))  # for modules beside it; last, so that they hide no others
    spec.loader.exec_module(module)
    return module


def error_in_words(error: BaseException) -> str:
    """Return the error, and the innermost line of the user's code in its traceback."""
    text = "".join(traceback.format_exception_only(error)).strip()
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_theirs(f.filename)]
    if not frames:
        return text
    return f"{text}\n  at {Path(frames[-1].filename).name}, line {frames[-1].lineno}: {frames[-1].line}"


def _is_theirs(filename: str) -> bool:
    """Return whether a file is neither Python's nor installed nor part of sbnref."""
    return not filename.startswith("<") and not any(Path(filename).is_relative_to(folder) for folder in NOT_THEIRS)
