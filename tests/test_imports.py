"""Imports: lint rejects the wrong ones, and ``import sbnref`` loads the layer and no tool."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sbnref"
TOOLS = (["conformance"], ["debugging"], ["interop"], ["lab"], ["demo"], ["cli"])
HEAVY = ("rich", "typer", "hypothesis", "matplotlib", "sklearn", "torch._dynamo", "torch._inductor")


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


def test_importing_loads_the_layer_and_no_tool():
    """At most 24 of our modules, and nothing heavy; the tools load on first use."""
    script = f"""
import sys, sbnref
ours = [name for name in sys.modules if name.partition(".")[0] == "sbnref"]
assert len(ours) <= 24, ours
assert not [name for name in {HEAVY} if name in sys.modules]
assert not [name for name in ours if name.split(".")[1:2] in {TOOLS}], ours
for name in sbnref.__all__:
    assert callable(getattr(sbnref, name)) or name == "functional", name
assert len(sbnref.__all__) <= 12
assert {{*sbnref.__all__}} <= {{*dir(sbnref)}}
sbnref.interop.until_all_done, sbnref.lab.Call, sbnref.debugging, sbnref.conformance.cases
"""
    subprocess.run((sys.executable, "-c", script), check=True)
