"""The native CPU kernels: when they are built, when layers choose them, and the error if a build fails."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from shared import process, refused

from sbnref.impls import build, cpu

pytestmark = pytest.mark.slow

CHOOSE = "import torch, sbnref; print(sbnref.impls.choose_impl(None, torch.device('cpu')).__name__)"
SBNREF = (sys.executable, "-c", "from sbnref.cli import app; app()")


def run(*command: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess:
    """Run a command whose builds do not optimize, in a third of the time."""
    here = {name: value for name, value in os.environ.items() if name not in ("SBNREF_IMPL", "SBNREF_CUDASIM", "CXX")}
    environment = {**here, "SBNREF_CPU_FLAGS": "-O0", "COLUMNS": "200", **environment}
    return process(*command, code=code, env=environment)


def chosen(**environment: str) -> str:
    ran = run(sys.executable, "-c", CHOOSE, **environment)
    assert ran.stderr == ""
    return ran.stdout.strip()


def info(**environment: str) -> dict:
    return json.loads(run(*SBNREF, "info", "--json", **environment).stdout)


def test_auto_takes_them_where_they_are_and_starts_no_compiler(tmp_path):
    here = {"TORCH_EXTENSIONS_DIR": str(tmp_path)}
    assert chosen(**here) == "sbnref.impls.reference"
    told = info(**here)
    assert told["impls"]["cpu"]["cpu"].startswith("it is not built yet; run `sbnref build cpu`, or select it")
    assert told["chosen"]["cpu"] == "reference"
    assert list(tmp_path.iterdir()) == [], "nothing was built"

    built = run(*SBNREF, "build", "cpu", **here)
    (library,) = tmp_path.glob("sbnref_cpu-*/sbnref_cpu.so")
    assert f"cpu: {library}" in built.stderr
    assert "sbnref: building the kernels for CPU tensors in" in built.stderr
    told = info(**here)
    assert told["chosen"]["cpu"] == "cpu"
    assert told["libraries"] == {"cpu": str(library), "cuda": None, "simulation": None}
    assert "building" not in run(*SBNREF, "build", "cpu", **here).stderr

    (finished,) = tmp_path.glob("sbnref_cpu-*/finished")
    finished.unlink()
    assert chosen(**here) == "sbnref.impls.reference", "a build that was killed does not count"
    finished.touch()

    # A built library needs neither a compiler nor a writable folder.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert chosen(**here, PATH="/nonexistent") == "sbnref.impls.cpu"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_messages_where_it_cannot_be_built(tmp_path):
    file = tmp_path / "file"
    file.touch()
    build = (*SBNREF, "build", "cpu")
    ran = run(*build, code=2, TORCH_EXTENSIONS_DIR=str(file / "folder"))
    assert ran.stderr.startswith(f"sbnref: cannot write to {file / 'folder'}")
    assert ": Not a directory; set TORCH_EXTENSIONS_DIR to another folder" in ran.stderr

    here = {"TORCH_EXTENSIONS_DIR": str(tmp_path / "folder")}
    assert "'c++' is not on the PATH; install g++" in run(*build, code=2, **here, PATH="/nonexistent").stderr
    ran = run(*build, code=2, **here, SBNREF_CPU_FLAGS="-fno-such-flag")
    assert "cannot build the kernels for CPU tensors: compiling failed:\n" in ran.stderr
    assert "-fno-such-flag" in ran.stderr
    told = info(**here, PATH="/nonexistent")
    assert "'c++' is not on the PATH" in told["impls"]["cpu"]["cpu"]
    assert told["chosen"]["cpu"] == "reference"


def test_without_a_home_layers_run(monkeypatch):
    for variable in ("HOME", "XDG_CACHE_HOME", "TORCH_EXTENSIONS_DIR"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    assert build.built(build.CPU) is None


def test_libraries_and_devices_are_named():
    assert refused("build", "gpu") == "sbnref: expected libraries among ('cpu', 'cuda', 'simulation'), got ['gpu']"
    assert cpu.why_not(torch.device("meta")) == cpu.why_not_yet(torch.device("meta")) == "the kernels need CPU tensors"


BITS = """
import hashlib, torch, sbnref
torch.manual_seed(0)
digest = hashlib.sha256()
for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
    for shape in ((5, 7, 33), (3, 70, 9, 9), (300, 130), (1, 2, 9001)):
        x = (torch.randn(shape, dtype=torch.float64) * 3 + 1).to(dtype)
        for x in (x, x.transpose(0, 1).contiguous().transpose(0, 1)):
            x = x.requires_grad_()
            layer = sbnref.SyncBatchNorm(shape[1], impl="cpu")
            y = layer(x)
            (dx,) = torch.autograd.grad(y, x, torch.randn(shape, dtype=torch.float64).to(dtype))
            for tensor in (y.detach(), dx, layer.running_mean, layer.running_var):
                digest.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
print(torch.ops.sbnref_cpu.build_info()[1], digest.hexdigest())
"""


def test_the_same_bits_with_other_instructions_and_compilers():
    """The library is compiled for PyTorch's CPU capability, which ATEN_CPU_CAPABILITY can lower."""
    mine = torch.backends.cpu.get_cpu_capability().lower()
    others = [{"ATEN_CPU_CAPABILITY": name} for name in (*(["avx2"] if mine == "avx512" else []), "default")]
    others += [{"CXX": name} for name in ("g++", "clang++") if shutil.which(name)]
    bits = {}
    for environment in ({}, *others):
        width, digest = run(sys.executable, "-c", BITS, SBNREF_CPU_FLAGS="", **environment).stdout.split()
        bits[width, environment.get("CXX", "c++")] = digest
    if len(bits) == 1:
        pytest.skip("the bits of other instructions and compilers were not compared: there are none here")
    assert len(set(bits.values())) == 1, bits
