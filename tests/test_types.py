"""Types reach those who install the package: a strict check of a script against the built wheel."""

import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]

SCRIPT = """
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
    """The interpreter of an environment with the wheel, built from what a checkout has, and our packages beside it."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("target")
    for name in ("sbnref", "csrc", "tutorials"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    build = ("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", target, source)
    subprocess.run((*pip, *build), check=True)
    (wheel,) = target.glob("*.whl")
    environment = target / "environment"
    venv.create(environment)
    python = environment / "bin" / "python"
    (site,) = environment.glob("lib/*/site-packages")
    zipfile.ZipFile(wheel).extractall(site)
    others = {sysconfig.get_paths()["purelib"], *(path for path in sys.path if path.endswith("site-packages"))}
    (site / "others.pth").write_text("\n".join(sorted(others)))
    return python


@pytest.mark.parametrize(("script", "wrong"), [(SCRIPT, []), (WRONG, [4, 5, 6])], ids=["right", "wrong"])
def test_a_script_is_checked_strictly(installed, tmp_path, script, wrong):
    (tmp_path / "script.py").write_text(script)
    options = ("--strict", "--cache-dir", ROOT / ".mypy_cache" / "wheel", "--python-executable", installed)
    run = subprocess.run(
        (sys.executable, "-m", "mypy", *options, "script.py"), capture_output=True, text=True, cwd=tmp_path
    )
    assert re.findall(r"^script.py:(\d+): error:", run.stdout, re.MULTILINE) == [*map(str, wrong)], run.stdout
    assert run.returncode == bool(wrong), run.stderr


def test_the_wheel_runs_without_a_compiler(installed, tmp_path):
    script = """if True:
        import sbnref, sbnref.cli, torch
        from sbnref.impls import build
        sbnref.SyncBatchNorm(3, impl="cpu")(torch.randn(4, 3)).sum().backward()
        print(build.built(build.CPU))"""
    nothing = {"PATH": str(tmp_path), "TORCH_EXTENSIONS_DIR": str(tmp_path / "extensions"), "HOME": str(tmp_path)}
    run = subprocess.run((installed, "-c", script), capture_output=True, text=True, cwd=tmp_path, env=nothing)
    (library,) = installed.parents[1].glob("lib/*/site-packages/sbnref/libraries/cpu_*.so")
    assert run.stdout == f"{library}\n", run.stderr


def test_the_wheel_has_sources_and_no_solutions(installed):
    (wheel,) = installed.parents[2].glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for name in (
        "csrc/forward_stats.cu",
        "csrc/simulation/include/cuda_runtime.h",
        "lab/player/player.js",
        "tutorials/kernels/1_naive.cu",
    ):
        assert f"sbnref/{name}" in names
    assert not [name for name in names if "solution" in name or "/own/" in name or name.startswith("benchmarks")]


def test_an_installation_makes_no_course(installed, tmp_path):
    command = (installed, "-m", "sbnref", "lab", "course", "make", tmp_path / "lab")
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 2
    assert run.stderr.startswith("sbnref: expected a checkout of sbnref, to build the course's wheel from")


def test_installed_it_confines_what_is_graded(installed, tmp_path):
    """There the package has the kernels' sources within it."""
    template = (ROOT / "sbnref" / "lab" / "grading" / "template.py").read_text()
    (tmp_path / "mine.py").write_text(template)
    code = (
        "from sbnref.lab.grading.check import check; print(check('mine.py', ['forward_stats'], timeout=20).unconfined)"
    )
    said = [
        subprocess.run((python, "-c", code), capture_output=True, text=True, check=True, cwd=tmp_path).stdout
        for python in (sys.executable, installed)
    ]
    if said[0] != "None\n":
        pytest.skip(f"this machine does not confine what is graded: {said[0]}")
    assert said[1] == "None\n"
