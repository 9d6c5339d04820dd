"""Building the kernels' library: cached, locked, and every failure says what to do."""

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from toolkits import compiler_that_made, made_up

from sbnref.impls import build, cuda
from sbnref.impls.build import KERNELS, SIMULATION

pytestmark = pytest.mark.slow

LOAD = "from sbnref.impls import cuda; cuda.simulation(); print(cuda.operators().build_info())"


@pytest.fixture
def simulated(monkeypatch):
    monkeypatch.setenv("SBNREF_CUDASIM", "1")


@pytest.fixture
def real(monkeypatch):
    """As on a machine with a GPU, up to what a test takes away."""
    monkeypatch.delenv("SBNREF_CUDASIM", raising=False)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.fixture
def cuda_home(monkeypatch, tmp_path):
    """Makes a toolkit of a release, and has CUDA_HOME name it."""

    def make(release: str) -> Path:
        home = made_up(tmp_path / "named", release)
        monkeypatch.setenv("CUDA_HOME", str(home))
        return home

    return make


def load(**environment: str) -> subprocess.CompletedProcess:
    """Load the simulation in another process."""
    environment = {**os.environ, "SBNREF_CUDASIM": "1", **environment}
    return subprocess.run((sys.executable, "-c", LOAD), capture_output=True, text=True, env=environment)


def test_where_it_runs(monkeypatch):
    monkeypatch.delenv("SBNREF_CUDASIM", raising=False)
    assert "set SBNREF_CUDASIM=1 to simulate them" in cuda.why_not(torch.device("cpu"))
    monkeypatch.setenv("SBNREF_CUDASIM", "1")
    assert "unset it to run them on the GPU" in cuda.why_not(torch.device("cuda"))


def test_no_compiler(simulated, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(build.BuildError, match="there is no 'no-such-compiler' on the PATH; install g\\+\\+"):
        build._check_tools(SIMULATION)


def test_no_pybind11(simulated, monkeypatch):
    monkeypatch.setattr(build.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(build.BuildError, match="install it with: pip install pybind11"):
        build._check_tools(SIMULATION)


def test_no_sources(simulated, monkeypatch, tmp_path):
    monkeypatch.setattr(build, "CSRC", tmp_path / "missing")
    with pytest.raises(build.BuildError, match="expected the kernels' sources in"):
        build._check_tools(SIMULATION)


def test_pytorch_without_cuda(real, monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    with pytest.raises(build.BuildError, match="was built without CUDA; install one built with it"):
        build._check_tools(KERNELS)


def test_no_gpu(real, monkeypatch, cuda_home):
    cuda_home("13.0")
    build._check_tools(KERNELS)  # for another machine, which the list names
    for value in ("", "native"):
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", value)
        assert build.toolkit_in_words().startswith("CUDA 13.0 in"), "the toolkit is there all the same"
        with pytest.raises(
            build.BuildError, match=r"PyTorch sees no CUDA GPU.*set TORCH_CUDA_ARCH_LIST, for example to 9\.0"
        ):
            build._check_tools(KERNELS)


@pytest.mark.parametrize(("release", "fits"), [("13.1", True), ("12.8", False)])
def test_nvcc_of_another_version(real, cuda_home, release, fits):
    home = cuda_home(release)
    if fits:
        build._check_tools(KERNELS)
        assert build.toolkit_in_words() == f"CUDA 13.1 in {home}, which CUDA_HOME names"
        return
    message = (
        rf"PyTorch {re.escape(torch.__version__)} was built with CUDA 13\.0, and .*nvcc, which CUDA_HOME names, is of "
        r"CUDA 12\.8; .*pip install 'cuda-toolkit\[nvcc,nvvm,crt,cccl\]==13\.0\.\*'"
    )
    with pytest.raises(build.BuildError, match=message):
        build._check_tools(KERNELS)
    assert build.toolkit_in_words().startswith("none: PyTorch")


def test_a_failed_compile_says_what_the_compiler_said_and_is_tried_again(tmp_path):
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\nexec c++ "$@" -fno-such-flag\n')
    compiler.chmod(0o755)
    for _ in range(2):
        run = load(TORCH_EXTENSIONS_DIR=str(tmp_path), CXX=str(compiler))
        assert run.returncode != 0
        assert "the simulation does not compile: compiling failed" in run.stderr
        assert "-fno-such-flag" in run.stderr


def test_processes_that_start_at_once_build_once(tmp_path):
    compiler = compiler_that_made(build.built(SIMULATION) or build.build(SIMULATION), tmp_path)
    environment = {"TORCH_EXTENSIONS_DIR": str(tmp_path), "CXX": compiler}
    with ThreadPoolExecutor() as pool:
        runs = list(pool.map(lambda _: load(**environment), range(3)))
    assert all("'simulation'" in run.stdout for run in runs), runs
    assert sum(run.stderr.count("sbnref: building the simulation of its kernels in") for run in runs) == 1
    assert "sbnref: building" not in load(**environment).stderr, "it is cached"

    (folder,) = (path for path in tmp_path.glob("sbnref_simulation-*") if path.is_dir())
    (folder / "sbnref_simulation.so").write_bytes(b"not a library")
    broken = load(**environment)
    assert f"does not load: {folder}" in broken.stderr
    assert f"delete {folder} to build it again" in broken.stderr


def test_an_installed_library_that_does_not_load(monkeypatch, tmp_path, real):
    monkeypatch.setattr(build, "INSTALLED", tmp_path)
    (tmp_path / KERNELS.installed).write_bytes(b"not a library")
    with pytest.raises(build.BuildError, match=r"installed with sbnref, does not load with PyTorch .*; install sbnref"):
        build._open(KERNELS, build.built(KERNELS))


def test_an_installed_library_needs_its_release_of_cuda(monkeypatch, tmp_path, real, cuda_home):
    monkeypatch.setattr(build, "INSTALLED", tmp_path)
    (tmp_path / KERNELS.installed).touch()
    assert build.built(KERNELS) == tmp_path / KERNELS.installed
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert build.built(KERNELS) is None
    cuda_home("13.0")
    with pytest.raises(build.BuildError, match=r"built with CUDA 12\.8 \(the kernels in wheels need CUDA 13\), and"):
        build._check_tools(KERNELS)


def test_nvcc_is_told_what_to_compile_for(real, cuda_home, monkeypatch):
    home = cuda_home("13.0")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0a;12.0+PTX")
    command = build.nvcc_command()
    assert command[0] == str(home / "bin" / "nvcc")
    assert [word.removeprefix("-gencode=") for word in command if word.startswith("-gencode=")] == [
        "arch=compute_80,code=sm_80",
        "arch=compute_90a,code=sm_90a",
        "arch=compute_120,code=sm_120",
        "arch=compute_120,code=compute_120",
    ]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    with pytest.raises(build.BuildError, match=r"such as 9\.0 or 9\.0\+PTX in TORCH_CUDA_ARCH_LIST, got Hopper"):
        build._check_tools(KERNELS)


def test_the_reason_is_kept(monkeypatch, real):
    monkeypatch.setattr(torch.version, "cuda", None)
    build.why_not.cache_clear()
    try:
        assert "was built without CUDA" in build.why_not(KERNELS)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        assert "was built without CUDA" in build.why_not(KERNELS)
    finally:
        build.why_not.cache_clear()
