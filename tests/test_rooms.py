"""Imports: lint rejects the wrong ones, ``import sbnref`` loads no tool, and old addresses keep working."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import sbnref

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sbnref"
HEAVY = (
    "sbnref.conformance",
    "rich",
    "typer",
    "hypothesis",
    "matplotlib",
    "sklearn",
    "torch._dynamo",
    "torch._inductor",
)


@pytest.fixture
def copy(tmp_path) -> Path:
    """A copy of the package to change."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return shutil.copytree(PACKAGE, tmp_path / "sbnref", ignore=shutil.ignore_patterns("__pycache__"))


@pytest.mark.parametrize(
    ("file", "line", "expected"),
    [
        ("autograd.py", "from .conformance import oracle", "sbnref.autograd -> sbnref.conformance.oracle"),
        ("impls/reference.py", "from ..collectives import resolve", "sbnref.impls.reference -> sbnref.collectives"),
        ("new.py", "", "sbnref.new"),  # a file that the contract gives no place
    ],
)
def test_lint_rejects_a_wrong_import(copy, file, line, expected):
    with (copy / file).open("a") as changed:
        changed.write(f"\n\ndef f():\n    {line or 'pass'}\n")
    run = subprocess.run(
        (Path(sys.executable).with_name("lint-imports"), "--no-cache"),
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(copy.parent), "COLUMNS": "200", "PATH": ""},
        cwd=copy.parent,
    )
    assert run.returncode == 1, run.stdout + run.stderr
    assert expected in run.stdout


def test_the_reference_imports_modes_and_running_alone():
    nodes = ast.walk(ast.parse((PACKAGE / "impls" / "reference.py").read_text()))
    assert {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.level} == {"modes", "running"}


def test_importing_is_light():
    script = f"import sys, sbnref; print([name for name in {HEAVY} if name in sys.modules])"
    run = subprocess.run((sys.executable, "-c", script), capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("address", "names"),
    [
        ("sbnref.check", "Grade StageGrade check template"),
        ("sbnref.compare", "Comparison Row compare"),
        ("sbnref.debug", "MismatchError"),
        ("sbnref.monitor", "Layer Monitor Step monitor"),
    ],
)
def test_addresses_that_scripts_import_from(address, names):
    for name in names.split():
        scope: dict[str, object] = {}
        exec(f"import {address}\nfrom {address} import {name}", scope)
        assert scope[name].__name__ == name
    assert callable(sbnref.compare)
    assert callable(sbnref.monitor)


def test_a_wheel_holds_every_folder():
    listed = re.search(r"^packages = \[(.*?)\n\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    names = {name for name in re.findall(r'"([^"]+)"', listed[1]) if not re.search(r"\.(csrc|tutorials)", name)}
    assert names == {".".join(path.parent.relative_to(ROOT).parts) for path in PACKAGE.rglob("__init__.py")}
