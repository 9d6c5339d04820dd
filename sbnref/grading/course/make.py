"""The folder of a course: what is handed out, what graders take, and the teacher's settings that both follow from."""

from __future__ import annotations

import ast
import re
import zipfile
from pathlib import Path

import torch

from ..check import template
from ..kernels.check import template as template_of_kernels
from .classroom import workflow
from .settings import FUNCTIONS, KERNELS, Settings
from .wheel import TUTORIALS, add, files_below, pack

FILES = Path(__file__).with_name("files")
_HANDED_OUT = (".py", ".cu", ".cuh", ".cpp", ".h")  # of the tutorials; what else lies there is for building the site


def make(folder: Path, settings: Settings | None = None) -> None:
    """Write the folder of a course.

    Args:
        folder: a new or an empty one. It is given ``handout``, for students; ``gradescope`` and ``github``, for the
            graders; and ``README.md`` and ``settings.json``, for the teacher.
        settings: points, cases and limits; as usual, with a hidden seed of its own, if None.

    Raises:
        ValueError: there is something in the folder, or it is none.
        RuntimeError: the package is not installed.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"expected a new or an empty folder, but there is something in {folder}")
    settings = settings or Settings()
    handout, grader = folder / "handout", folder / "gradescope"
    workflows = folder / "github" / ".github" / "workflows"
    for place in (handout, grader, workflows):
        place.mkdir(parents=True)
    wheel = pack(handout)
    (handout / "requirements.txt").write_text(_requirements(wheel, "check,cuda,demo"), encoding="utf-8")
    (handout / FUNCTIONS).write_text(template(), encoding="utf-8")
    (handout / KERNELS).write_text(template_of_kernels(), encoding="utf-8")
    for path in files_below(TUTORIALS):
        if path.suffix in _HANDED_OUT:
            copy = handout / "tutorials" / path
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes((TUTORIALS / path).read_bytes())
    (handout / "README.md").write_text(_readme(settings), encoding="utf-8")
    (workflows / "classroom.yml").write_text(workflow(settings), encoding="utf-8")
    settings.save(folder / "settings.json")
    (folder / "README.md").write_bytes((FILES / "teacher.md").read_bytes())
    with zipfile.ZipFile(grader / "autograder.zip", "w") as archive:
        for name in ("setup.sh", "run_autograder"):
            add(archive, name, (FILES / name).read_bytes(), mode=0o755)
        add(archive, "settings.json", (folder / "settings.json").read_bytes())
        add(archive, "requirements.txt", _requirements(wheel, "check").encode())
        add(archive, wheel.name, wheel.read_bytes())


def _requirements(wheel: Path, extras: str) -> str:
    """What pip is to install: this very version, and the PyTorch that is here, without CUDA's gigabytes."""
    version = torch.__version__.partition("+")[0]
    return f"--extra-index-url https://download.pytorch.org/whl/cpu\ntorch=={version}\n./{wheel.name}[{extras}]\n"


def _readme(settings: Settings) -> str:
    """The students' page: of the parts that are graded, and with the tutorials that are there."""
    text = (FILES / "student.md").read_text(encoding="utf-8")
    for file in (FUNCTIONS, KERNELS):
        worth = [f"{name} {settings.points[name]}" for name in settings.graded(file)]
        text = text.replace(f"{{{file}}}", f"Points: {', '.join(worth)}." if worth else "It is not graded.")
    return text.replace("{tutorials}", "\n".join(map(_tutorial, sorted(TUTORIALS.glob("[0-9]*.py")))))


def _tutorial(file: Path) -> str:
    """A row of the table: the file, its title, how many exercises it has."""
    text = file.read_text(encoding="utf-8")
    title = (ast.get_docstring(ast.parse(text)) or file.stem).splitlines()[0]
    _, _, exercises = text.partition("# Exercises\n")
    return f"| `tutorials/{file.name}` | {title} | {len(re.findall(r'^# [0-9]+[.] ', exercises, re.MULTILINE))} |"
