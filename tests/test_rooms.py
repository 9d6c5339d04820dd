"""Who imports whom: the contract can be broken, the page *Inside* draws what is so, and importing stays light."""

import ast
import json
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

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
    "grimp",
    "torch._dynamo",
    "torch._inductor",
)


def imports(path: Path) -> set[str]:
    """The modules of sbnref that a file imports, wherever in it, but for type checking alone."""
    package = ["sbnref", *path.relative_to(PACKAGE).parts[:-1]]
    found = set()
    todo: list[ast.AST] = [ast.parse(path.read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            todo += node.orelse
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = [*base, *(node.module or "").split(".")] if node.module else base
            for alias in node.names:
                part = PACKAGE.parent.joinpath(*base, alias.name)
                is_module = part.is_dir() or part.with_suffix(".py").exists()
                found.add(".".join([*base, alias.name] if is_module else base))
        else:
            todo += ast.iter_child_nodes(node)
    return {name for name in found if name.split(".")[0] == "sbnref"}


def room_of(module: str) -> str:
    return [*module.split("."), ""][1]


def page(expression: str, package: Path = PACKAGE) -> Any:
    """What docs/inside.py makes of a package."""
    run = subprocess.run(
        (sys.executable, "-c", f"import inside, json, re; print(json.dumps({expression}))"),
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{package.parent}:{ROOT / 'docs'}", "PATH": ""},
        cwd=package.parent,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def drawn(package: Path = PACKAGE) -> dict[str, set[str]]:
    """The rooms that each room imports from, by the squares that are drawn."""
    squares: dict[str, set[str]] = {}
    titles = r"<title>(\S+) imports from ([^\s,<]+)"
    for importer, imported in page(f"re.findall({titles!r}, inside.matrix(inside.rooms()))", package):
        squares.setdefault(name_of(importer), set()).add(name_of(imported))
    return squares


def name_of(title: str) -> str:
    """'' for the package itself, else the room's name."""
    return title.removesuffix("/").removesuffix(".py").replace("__init__", "")


@pytest.fixture
def copy(tmp_path) -> Path:
    """The package, to be spoiled."""
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return shutil.copytree(PACKAGE, tmp_path / "sbnref", ignore=shutil.ignore_patterns("__pycache__"))


def test_the_page_draws_the_imports():
    expected: dict[str, set[str]] = {}
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(["sbnref", *path.relative_to(PACKAGE).with_suffix("").parts])
        room = room_of(module.removesuffix(".__init__"))
        if others := {room_of(other) for other in imports(path)} - {room}:
            expected[room] = expected.get(room, set()) | others
    assert drawn() == expected
    assert expected["functional"] >= {"autograd", "debugging"}, "the hook is among them"


def test_each_file_on_the_way_of_the_data_imports_the_next():
    svg = page("inside.way()")
    files = re.findall(r'class="name"[^>]*>(\w+\.py)<', svg)
    assert files == ["module.py", "functional.py", "autograd.py", "collectives.py"]
    for file, following in pairwise(files):
        assert f"sbnref.{name_of(following)}" in imports(PACKAGE / file)
    assert sorted(re.findall(r'class="name"[^>]*>(\w+)<', svg)) == sorted(sbnref.impls.STAGES)
    for implementation in ("reference", "cpu", "cuda"):
        assert f"impls/{implementation}.py" in svg


def test_the_page_draws_an_import_that_was_not_there(copy):
    (copy / "modes.py").write_text((copy / "modes.py").read_text() + "\n\ndef f():\n    from .grading import hints\n")
    assert "grading" in drawn(copy)["modes"]


@pytest.mark.parametrize(
    ("file", "line", "said"),
    [
        ("impls/reference.py", "from ..collectives import resolve", "sbnref.impls.reference -> sbnref.collectives"),
        ("impls/reference.py", "from . import STAGES", "sbnref.impls.reference -> sbnref.impls"),
        ("autograd.py", "from .conformance import oracle", "sbnref.autograd -> sbnref.conformance.oracle"),
        ("collectives.py", "from .debugging import agreement", "sbnref.collectives -> sbnref.debugging.agreement"),
        ("functional.py", "from .debugging import report", "sbnref.functional -> sbnref.debugging.report"),
        ("debugging/info.py", "from ..grading import hints", "sbnref.debugging.info -> sbnref.lab.grading.hints"),
        ("fifth.py", "", "sbnref.fifth"),
    ],
)
def test_the_contract_can_be_broken(copy, file, line, said):
    with (copy / file).open("a") as spoiled:
        spoiled.write(f"\n\ndef f():\n    {line or 'pass'}\n")
    run = subprocess.run(
        (Path(sys.executable).with_name("lint-imports"), "--no-cache"),
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(copy.parent), "COLUMNS": "200", "PATH": ""},
        cwd=copy.parent,
    )
    assert run.returncode == 1, run.stdout + run.stderr
    assert said in run.stdout


def test_the_reference_imports_nothing_but_the_rules_on_channels():
    assert imports(PACKAGE / "impls" / "reference.py") == {"sbnref.modes", "sbnref.running"}


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


def test_a_wheel_holds_every_room():
    listed = re.search(r"^packages = \[(.*?)\n\]", (ROOT / "pyproject.toml").read_text(), re.MULTILINE | re.DOTALL)
    rooms = {".".join(("sbnref", *path.parent.relative_to(PACKAGE).parts)) for path in PACKAGE.rglob("__init__.py")}
    assert {name for name in re.findall(r'"([^"]+)"', listed[1]) if not re.search(r"\.(csrc|tutorials)", name)} == rooms
