"""A stand-in for Gradescope: its folders, and a check of its results format."""

import json
import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from shared import process

from sbnref.impls.build import cache

ENVIRONMENT = Path(sys.executable).parents[1]

# gradescope-autograders.readthedocs.io/en/latest/specs: the fields in use and their allowed values.
SHOWN = ("hidden", "after_due_date", "after_published", "visible")
FORMATS = ("text", "html", "simple_format", "md", "ansi")
OF_A_TEST: dict[str, Any] = {
    **{"score": (int, float), "max_score": (int, float), "name": (str,), "output": (str,), "output_format": FORMATS},
    **{"status": ("passed", "failed"), "visibility": SHOWN},
}
OF_ALL: dict[str, Any] = {
    **{"score": (int, float), "execution_time": (int, float), "output": (str,), "tests": (list,)},
    **{"visibility": SHOWN, "stdout_visibility": SHOWN, "output_format": FORMATS, "test_output_format": FORMATS},
}


def conforms(results: dict[str, Any]) -> dict[str, Any]:
    for told, known in [(results, OF_ALL), *((test, OF_A_TEST) for test in results["tests"])]:
        for name, value in told.items():
            assert value in known[name] or type(value) in known[name], f"{name} is {value!r}"
    assert "score" in results or all("score" in test for test in results["tests"])
    assert results["score"] == pytest.approx(sum(test["score"] for test in results["tests"]))
    for test in results["tests"]:
        assert 0 <= test["score"] <= test["max_score"]
        assert test["status"] == ("passed" if test["score"] == test["max_score"] else "failed")
        assert test["visibility"] != "hidden", "points are never shown"
    return results


def scores(results: dict[str, Any]) -> dict[str, float]:
    return {test["name"]: test["score"] for test in results["tests"]}


def hand_in(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


class Autograder:
    """Unpack and run an autograder.zip like Gradescope, in a folder instead of /autograder."""

    def __init__(self, archive: Path) -> None:
        self._folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self.place = Path(self._folder.name)
        self.place.chmod(0o777)  # as permissive as /autograder
        for name in ("source", "submission", "results"):
            (self.place / name).mkdir()
        with zipfile.ZipFile(archive) as files:
            for file in files.infolist():
                files.extract(file, self.place / "source")
                os.chmod(self.place / "source" / file.filename, file.external_attr >> 16)
        shutil.copy(self.place / "source" / "run_autograder", self.place)
        (self.place / "venv").symlink_to(ENVIRONMENT)  # setup.sh would create it
        (self.place / "libraries").symlink_to(cache())

    def __call__(self, files: dict[str, str], code: int = 0) -> dict[str, Any]:
        shutil.rmtree(self.place / "submission")
        (self.place / "submission").mkdir()
        (self.place / "results" / "results.json").unlink(missing_ok=True)
        hand_in(self.place / "submission", files)
        env = {"PATH": os.environ["PATH"], "AUTOGRADER": str(self.place)}
        run = process(self.place / "run_autograder", code=code, cwd=self.place, env=env)
        self.printed = run.stdout + run.stderr
        return json.loads((self.place / "results" / "results.json").read_text())
