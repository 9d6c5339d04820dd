"""Grade a submission on Gradescope, and write ``results.json``. Gradescope's ``run_autograder`` runs it.

The format is https://gradescope-autograders.readthedocs.io/en/latest/specs/. Each stage or part has a visible test,
with the report of ``sbnref lab check``, and a test on hidden cases. The hidden report names no seed, because code
submitted later may read it. Gradescope shows the printed output to teachers only.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from ..grading.check import Grade, check
from ..grading.kernels.check import check_kernels
from ..grading.kernels.report import PARTS, KernelGrade
from ..sandbox import process
from ..tasks import find_task
from .settings import FILES, FUNCTIONS, Settings

STUDENT_USER = "nobody"
_SEEDS = re.compile(r",\s+seed\s+\d+|^to repeat these \w+: --seed \d+\s*", re.MULTILINE)  # in reports


class Outcome(NamedTuple):
    """The result of a stage or part on some cases."""

    share: float  # of the points, 0 to 1
    report: str  # for the student

    @property
    def passed(self) -> bool:
        """Whether it gets all points."""
        return self.share == 1


def main() -> None:
    """Grade the folder ``submission`` below the folder on the command line, by ``source/settings.json``."""
    place = Path(sys.argv[1]).resolve()
    os.chdir(place / "source")  # the folder with a task's file
    settings = Settings.load(Path("settings.json"))
    hide = [place / "source", place / "submission_metadata.json"]  # the latter has the results of earlier submissions
    results = grade(place / "submission", settings, hide=hide, user=other_user())
    unfinished = place / "results" / "results.json.part"
    unfinished.write_text(json.dumps(results, indent=1), encoding="utf-8")
    unfinished.replace(place / "results" / "results.json")


def other_user() -> str | None:
    """Return the user that runs submissions if root grades. It can neither write results nor read the hidden seed."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return None
    student = process.user_of(STUDENT_USER)
    with suppress(OSError, subprocess.SubprocessError):  # if that user cannot run Python, root has to
        subprocess.run([sys.executable, "-c", ""], check=True, **student)
        return STUDENT_USER
    return None


def grade(
    submission: Path, settings: Settings, *, hide: Sequence[Path] = (), user: str | None = None
) -> dict[str, Any]:
    """Return the results of a submission for Gradescope.

    Args:
        submission: the folder with the submitted files.
        settings: points, cases and limits.
        hide: folders and files to hide from the code, if it can be confined.
        user: the user to run the code as, if root grades; None for the current user.
    """
    start = time.monotonic()
    tests: list[dict[str, Any]] = []
    for file in FILES:
        if names := settings.graded(file):
            tests += _tests_of(submission / file, names, settings, {"hide": hide, "user": user})
    visible, hidden = ([test for test in tests if (test["visibility"] == "visible") is seen] for seen in (True, False))
    output = f"{_sum(visible, 'score'):g} of {_sum(visible, 'max_score'):g} points on the visible cases."
    if hidden:
        output += f" {_sum(hidden, 'max_score'):g} more are for other cases; their results appear later."
    shown = {"visibility": "visible", "stdout_visibility": "hidden"}
    seconds = round(time.monotonic() - start)
    return {"score": _sum(tests, "score"), "execution_time": seconds, "output": output, "tests": tests, **shown}


def _tests_of(file: Path, names: list[str], settings: Settings, sandbox: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the tests of one file, for each name the visible one first."""
    needed = list(PARTS) if "efficient" in names else names
    seen = _outcomes(file, needed, settings.seed, settings, sandbox)
    if "efficient" in seen and not all(seen[name].passed for name in needed if name != "efficient"):
        seen["efficient"] = Outcome(0, f"Not counted before everything else passes.\n\n{seen['efficient'].report}")
    hidden_names = [name for name in names if name != "efficient" and settings.hidden_share > 0]
    unseen = _outcomes(file, [n for n in hidden_names if seen[n].passed], settings.hidden_seed, settings, sandbox)
    tests = []
    for name in names:
        points = settings.points[name]
        hidden_points = round(points * settings.hidden_share, 2) if name in hidden_names else 0
        again = f"To try it yourself: {settings.command(name)}\n\n"
        outcome = Outcome(seen[name].share, again + seen[name].report)
        tests.append(_test(name, round(points - hidden_points, 2), "visible", outcome))
        if hidden_points:
            outcome = unseen.get(name) or Outcome(0, f"Not tried: {name} fails on the visible cases.")
            tests.append(_test(f"{name}, other cases", hidden_points, settings.hidden_shown, outcome))
    return tests


def _test(name: str, points: float, visibility: str, outcome: Outcome) -> dict[str, Any]:
    return {
        "name": name,
        "score": round(points * outcome.share, 2),
        "max_score": points,
        "status": "passed" if outcome.passed else "failed",
        "output": outcome.report,
        "output_format": "text",
        "visibility": visibility,
    }


def _outcomes(
    file: Path, names: list[str], seed: int, settings: Settings, sandbox: dict[str, Any]
) -> dict[str, Outcome]:
    """Return an outcome for each stage or part, on the cases of a seed, even if grading fails."""
    if not names:
        return {}
    why = _not_there(file)
    if why is None:
        try:
            return _graded(file, names, seed, settings, sandbox)
        except ValueError as error:  # the file cannot be graded
            why = str(error)
        except Exception:
            print(f"The grader failed on {file.name}:\n{traceback.format_exc()}")
            why = "The grader itself failed, perhaps not because of your code. Please tell your teacher."
    return dict.fromkeys(names, Outcome(0, process.plain(why).replace(str(file), file.name)))


def _graded(file: Path, names: list[str], seed: int, settings: Settings, sandbox: dict[str, Any]) -> dict[str, Outcome]:
    options = {"examples": settings.examples, "timeout": settings.timeout, "seed": seed} | sandbox
    report: Grade | KernelGrade
    outcomes = {}
    if file.name == FUNCTIONS:
        # A package that is not installed here cannot be used, and the grader rejects unknown names.
        forbid = [name for name in settings.forbid if find_spec(name.partition(".")[0]) is not None]
        report = check(file, names, forbid=forbid, **options)
        for stage in report.stages:
            alone = Grade(file.name, [stage], seed)
            outcomes[stage.stage] = Outcome(alone.score, str(alone))
    else:
        report = check_kernels(file, find_task(settings.task), [name for name in PARTS if name in names], **options)
        for part in report.parts:
            outcomes[part.name] = Outcome(part.score, str(KernelGrade(file.name, [part], seed, None)))
    if report.unconfined is not None:
        print(f"{file.name} ran unconfined ({report.unconfined}), as {sandbox['user'] or 'the current user'}")
    if seed == settings.hidden_seed:
        return {name: Outcome(share, _SEEDS.sub("", report)) for name, (share, report) in outcomes.items()}
    return outcomes


def _not_there(file: Path) -> str | None:
    """Return why the file cannot be graded, or None."""
    if file.is_symlink():
        return f"expected a file {file.name} in the submission, got a link"
    if file.is_file():
        return None
    if file.exists():
        return f"expected a file {file.name} in the submission, got a folder or something else of that name"
    others = sorted(path.name for path in file.parent.iterdir()) if file.parent.is_dir() else []
    return f"expected a file {file.name} in the submission, got {', '.join(others[:10]) or 'nothing'}"


def _sum(tests: list[dict[str, Any]], what: str) -> float:
    return round(sum(test[what] for test in tests), 2)


if __name__ == "__main__":
    main()
