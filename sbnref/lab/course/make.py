"""The folder of a course: the handout, the autograder, and the teacher's settings for both."""

from __future__ import annotations

import ast
import io
import pkgutil
import re
import zipfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch

from ...debugging.report import in_words
from ..grading.check import template
from ..tasks import TASKS, find_task
from .packing import add, pack, tutorials
from .settings import FUNCTIONS, KERNELS, Settings

FILES = Path(__file__).with_name("files")
_SITE = """
The derivations that reports name, and the explorer and the player, are in `site`. This shows them on
http://localhost:8000:

```bash
python -m http.server --directory site
```
"""


def make(folder: Path, settings: Settings | None = None, site: Path | None = None) -> None:
    """Write the folder of a course.

    Args:
        folder: a new or an empty one. It gets ``handout``, for students; ``gradescope``, for the grader; and
            ``README.md`` and ``settings.json``, for the teacher.
        settings: points, cases and limits; the defaults, with a new hidden seed, if None.
        site: the built documentation, to hand out too.

    Raises:
        ValueError: the folder is not empty or not a folder, or a name to forbid or a task does not exist.
        RuntimeError: this is an installation, not a checkout, or its wheel cannot be built.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"expected a new or empty folder, got {folder}")
    if site is not None and not (site / "index.html").is_file():
        raise ValueError(f"expected a built site, see `make docs`, found no {site / 'index.html'}")
    files = _files(settings or Settings(), site)
    try:
        for name, content in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
    except OSError as error:
        raise ValueError(f"expected a folder to write to, got {folder}: {error.strerror}") from error


def _files(settings: Settings, site: Path | None) -> dict[str, bytes]:
    """Return all files, made before the first is written, so that an error leaves nothing behind."""
    if unknown := [name for name in settings.forbid if not _can_be_forbidden(name)]:
        raise ValueError(f"settings: expected existing modules and functions to forbid, got {in_words(unknown)}")
    task = find_task(settings.task)
    own = {} if settings.task in TASKS else {"task.py": Path(settings.task).read_bytes()}
    settings = replace(settings, task="task.py") if own else settings
    wheel, packed = pack()
    kept = settings.text().encode()
    handout = {
        wheel: packed,
        "requirements.txt": _requirements(wheel, "check,cuda,demo").encode(),
        FUNCTIONS: template().encode(),
        KERNELS: task.template().encode(),
        "README.md": _readme(settings, site is not None).encode(),
        **own,
        **{f"tutorials/{name}": path.read_bytes() for name, path in tutorials().items()},
    }
    if site is not None:
        pages = (page for page in sorted(site.rglob("*")) if page.is_file())
        handout |= {f"site/{page.relative_to(site).as_posix()}": page.read_bytes() for page in pages}
    grader = io.BytesIO()
    with zipfile.ZipFile(grader, "w") as archive:
        for name in ("setup.sh", "run_autograder"):
            add(archive, name, (FILES / name).read_bytes(), mode=0o755)
        requirements = _requirements(wheel, "check").encode()
        for name, text in {"settings.json": kept, **own, "requirements.txt": requirements, wheel: packed}.items():
            add(archive, name, text)
    files = {"README.md": (FILES / "teacher.md").read_bytes(), "settings.json": kept, **own}
    files |= {"gradescope/autograder.zip": grader.getvalue()}
    return files | {f"handout/{name}": content for name, content in handout.items()}


def _can_be_forbidden(name: str) -> bool:
    """Return whether it is a module or a function."""
    found = None
    with suppress(ImportError, AttributeError, ValueError):
        found = pkgutil.resolve_name(name)
    return isinstance(found, ModuleType) or callable(found)


def _requirements(wheel: str, extras: str) -> str:
    """Return requirements for pip: the wheel, and this version of PyTorch, built without CUDA."""
    version = torch.__version__.partition("+")[0]
    return f"--extra-index-url https://download.pytorch.org/whl/cpu\ntorch=={version}\n./{wheel}[{extras}]\n"


def _readme(settings: Settings, site: bool) -> str:
    """Return the students' page, with the points of graded parts and the list of tutorials."""
    text = (FILES / "student.md").read_text(encoding="utf-8")
    for file in (FUNCTIONS, KERNELS):
        worth = [f"{name} {settings.points[name]}" for name in settings.graded(file)]
        text = text.replace(f"{{{file}}}", f"Points: {', '.join(worth)}." if worth else "It is not graded.")
    rows = "\n".join(_tutorial(path) for name, path in tutorials().items() if name[0].isdigit())
    return text.replace("{site}", _SITE if site else "").replace("{task}", settings.task).replace("{tutorials}", rows)


def _tutorial(file: Path) -> str:
    """Return a row of the table: the file, its title, the number of its exercises."""
    text = file.read_text(encoding="utf-8")
    title = (ast.get_docstring(ast.parse(text)) or file.stem).splitlines()[0]
    _, _, exercises = text.partition("# Exercises\n")
    return f"| `tutorials/{file.name}` | {title} | {len(re.findall(r'^# [0-9]+[.] ', exercises, re.MULTILINE))} |"
