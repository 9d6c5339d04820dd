"""Imports: lint rejects the wrong ones, and ``import sbnref`` loads the layer and no tool."""

import ast
import shutil
import sys
from pathlib import Path

import pytest
from shared import ROOT, process, python

pytestmark = pytest.mark.slow

PACKAGE = ROOT / "sbnref"
TOOLS = (["conformance"], ["debugging"], ["interop"], ["lab"], ["demo"], ["cli"])
HEAVY = ("rich", "typer", "hypothesis", "matplotlib", "sklearn", "torch._dynamo", "torch._inductor")


def test_lint_rejects_wrong_imports(tmp_path):
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    shutil.copytree(PACKAGE, tmp_path / "sbnref", ignore=shutil.ignore_patterns("__pycache__"))
    for file, line in (
        ("autograd.py", "from .conformance import oracle"),
        ("impls/reference.py", "from ..collectives import resolve"),
        ("new.py", "pass"),  # a file that the contract gives no place
    ):
        with (tmp_path / "sbnref" / file).open("a") as changed:
            changed.write(f"\n\ndef f():\n    {line}\n")
    env = {"PYTHONPATH": str(tmp_path), "COLUMNS": "200", "PATH": ""}
    run = process(Path(sys.executable).with_name("lint-imports"), "--no-cache", code=1, env=env, cwd=tmp_path)
    for expected in ("autograd -> sbnref.conformance.oracle", "impls.reference -> sbnref.collectives", "sbnref.new"):
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
assert len(sbnref.__all__) <= 13
assert {{*sbnref.__all__}} <= {{*dir(sbnref)}}
sbnref.interop.until_all_done, sbnref.lab.Call, sbnref.debugging, sbnref.conformance.cases
"""
    python("-c", script)
