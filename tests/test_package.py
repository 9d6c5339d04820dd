"""The package: imports between modules, and the contents of the wheel, including types."""

import ast
import re
import shutil
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from shared import ROOT, process, python

from sbnref.lab.grading.check import check, template

pytestmark = pytest.mark.slow

PACKAGE = ROOT / "sbnref"
TOOLS = (["conformance"], ["debugging"], ["interop"], ["lab"], ["demo"], ["cli"])
HEAVY = ("rich", "typer", "hypothesis", "matplotlib", "sklearn", "torch._dynamo", "torch._inductor")


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


RIGHT = """
import torch
import sbnref
from sbnref.debugging.compare import Comparison

def train() -> torch.Tensor:
    layer = sbnref.SyncBatchNorm(3, stats_mode="exact", impl="reference")
    with sbnref.monitor(layer) as watch:
        layer(torch.randn(4, 3, 8, 8))
    print(watch.layers["SyncBatchNorm"].mean_off("default"))
    with sbnref.diagnose(layer) as d:
        layer(torch.randn(4, 3, 8, 8))
    print(d.suspects[0].code if d.suspects else d)
    return sbnref.functional.sync_batch_norm(torch.randn(4, 3), None, None, training=True)

outputs: list[torch.Tensor] = sbnref.launch(train, 2)
report: Comparison = sbnref.compare(sbnref.SyncBatchNorm(3), torch.randn(4, 3), ("reference", "reference"))
"""
WRONG = """
import sbnref

sbnref.SyncBatchNorm("3")
sbnref.launch(sbnref.use_impl, "two")
sbnref.compare(sbnref.SyncBatchNorm(3), 0).agree
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Return the interpreter of an environment with the wheel, built from a checkout's files, and our packages."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    left_out = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "docs", "tests")
    shutil.copytree(ROOT, source, ignore=left_out, dirs_exist_ok=True)
    pip = ("-m", "pip", "--quiet", "--disable-pip-version-check")
    python(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", target, source)
    (wheel,) = target.glob("*.whl")
    environment = target / "environment"
    venv.create(environment)
    interpreter = environment / "bin" / "python"
    (site,) = environment.glob("lib/*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    (metadata,) = site.glob("sbnref-*/METADATA")
    links = re.findall(r"\]\((.*?)\)", metadata.read_text())
    assert links
    assert all(link.startswith("https://") for link in links)
    others = {sysconfig.get_paths()["purelib"], *(path for path in sys.path if path.endswith("site-packages"))}
    (site / "others.pth").write_text("\n".join(sorted(others)))
    return interpreter


def test_scripts_are_checked_strictly(installed, tmp_path):
    for name, text in (("right.py", RIGHT), ("wrong.py", WRONG)):
        (tmp_path / name).write_text(text)
    options = ("--strict", "--cache-dir", ROOT / ".mypy_cache" / "wheel", "--python-executable", installed)
    run = python("-m", "mypy", *options, "right.py", "wrong.py", code=1, cwd=tmp_path)
    assert re.findall(r"^(\S+): error:", run.stdout, re.MULTILINE) == ["wrong.py:4", "wrong.py:5", "wrong.py:6"]


def test_the_wheel_runs_without_a_compiler(installed, tmp_path):
    script = """if True:
        import sbnref, sbnref.cli, torch
        from sbnref.impls import build
        sbnref.SyncBatchNorm(3, impl="cpu")(torch.randn(4, 3)).sum().backward()
        print(build.built(build.CPU))"""
    nothing = {"PATH": str(tmp_path), "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions"), "HOME": str(tmp_path)}
    run = process(installed, "-c", script, cwd=tmp_path, env=nothing)
    (library,) = installed.parents[1].glob("lib/*/site-packages/sbnref/libraries/cpu_*.so")
    assert run.stdout == f"{library}\n", run.stderr


def test_the_wheel_has_sources_and_no_solutions(installed):
    (wheel,) = installed.parents[2].glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    sources = ("csrc/forward_stats.cu", "csrc/simulation/include/cuda_runtime.h", "tutorials/kernels/1_naive.cu")
    assert {f"sbnref/{name}" for name in (*sources, "lab/player/player.js")} <= set(names)
    assert not [name for name in names if "solution" in name or "/own/" in name or name.startswith("benchmarks")]


def test_installed_it_confines_like_a_checkout(installed, tmp_path):
    """The installed package contains the kernels' sources."""
    (tmp_path / "mine.py").write_text(template())
    code = "from sbnref.lab.grading.check import check; print(check('mine.py', timeout=20).unconfined)"
    here = check(tmp_path / "mine.py", timeout=20).unconfined
    assert process(installed, "-c", code, cwd=tmp_path).stdout == f"{here}\n"
