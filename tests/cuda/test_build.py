"""Building the kernels' library: the cache, the lock, the CUDA toolkit, and a remedy in every error."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from shared import python

from sbnref.impls import build, cuda, toolkit
from sbnref.impls.build import KERNELS, SIMULATION
from sbnref.impls.toolkit import NoToolkit, find_toolkit

pytestmark = pytest.mark.slow

LOAD = "from sbnref.impls import cuda; cuda.simulation(); print(cuda.operators().build_info())"
COPY = f"""
import shutil, sys, time
from sbnref.impls import build

def copy(library, folder):
    print("building")
    time.sleep(0.5)
    shutil.copy(sys.argv[1], folder)

build._compile = copy
{LOAD}
"""
COMMAND = "pip install 'cuda-toolkit[nvcc,nvvm,crt,cccl]==13.0.*'"


def made_up(home: Path, release: str) -> Path:
    (home / "bin").mkdir(parents=True)
    (home / "include").mkdir()
    (home / "include" / "cuda_runtime_api.h").touch()
    nvcc = home / "bin" / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.1'\n")
    nvcc.chmod(0o755)
    return home


@pytest.fixture
def real(monkeypatch):
    """Imitate a machine with a GPU; each test removes a part."""
    monkeypatch.delenv("SBNREF_CUDASIM", raising=False)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.fixture
def cuda_home(monkeypatch, tmp_path):
    """Return a function that makes a toolkit of a release and points CUDA_HOME to it."""

    def make(release: str) -> Path:
        home = made_up(tmp_path / "named", release)
        monkeypatch.setenv("CUDA_HOME", str(home))
        return home

    return make


def load(script: str = LOAD, *arguments: object, code: int = 0, **environment: str) -> subprocess.CompletedProcess:
    return python("-c", script, *arguments, code=code, env={**os.environ, "SBNREF_CUDASIM": "1", **environment})


def test_where_it_runs(monkeypatch):
    monkeypatch.delenv("SBNREF_CUDASIM", raising=False)
    assert "set SBNREF_CUDASIM=1 to simulate them" in cuda.why_not(torch.device("cpu"))
    monkeypatch.setenv("SBNREF_CUDASIM", "1")
    assert "unset it to run them on the GPU" in cuda.why_not(torch.device("cuda"))


MISSING = {  # the library, the patch that removes a requirement, and the message
    "compiler": (SIMULATION, ("setenv", "CXX", "no-such"), r"'no-such' is not on the PATH; install g\+\+"),
    "pybind11": (
        SIMULATION, ("setattr", "importlib.util.find_spec", lambda _: None), "install it with: pip install pybind11"),
    "sources": (
        SIMULATION, ("setattr", build, "CSRC", Path("no")), "expected the kernels' sources in"),
    "a POSIX system": (
        SIMULATION, ("setattr", build, "os", SimpleNamespace(name="nt")), "cannot be built on Windows; use WSL"),
    "CUDA": (KERNELS, ("setattr", torch.version, "cuda", None), "was built without CUDA; install one built with it"),
}  # fmt: skip


@pytest.mark.parametrize("what", MISSING)
def test_what_is_missing_is_named(what, real, monkeypatch):
    library, (take, *away), message = MISSING[what]
    if library is SIMULATION:
        monkeypatch.setenv("SBNREF_CUDASIM", "1")
    getattr(monkeypatch, take)(*away)
    with pytest.raises(build.BuildError, match=message):
        build._check_tools(library)


def test_no_gpu(real, monkeypatch, cuda_home):
    cuda_home("13.0")
    build._check_tools(KERNELS)  # TORCH_CUDA_ARCH_LIST names the GPU
    for value in ("", "native"):
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", value)
        assert str(build.find_cuda()).startswith("CUDA 13.0 in"), "the toolkit is there all the same"
        with pytest.raises(
            build.BuildError, match=r"PyTorch sees no CUDA GPU.*set TORCH_CUDA_ARCH_LIST, for example to 9\.0"
        ):
            build._check_tools(KERNELS)


def test_a_failed_compile_says_what_the_compiler_said_and_is_tried_again(tmp_path):
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\nexec c++ "$@" -fno-such-flag\n')
    compiler.chmod(0o755)
    for _ in range(2):
        run = load(TORCH_EXTENSIONS_DIR=str(tmp_path), CXX=str(compiler), code=1)
        assert "the simulation does not compile: compiling failed" in run.stderr
        assert "-fno-such-flag" in run.stderr


def test_processes_that_start_at_once_build_once(tmp_path):
    library, environment = build.built(SIMULATION) or build.build(SIMULATION), {"TORCH_EXTENSIONS_DIR": str(tmp_path)}
    with ThreadPoolExecutor() as pool:
        runs = list(pool.map(lambda _: load(COPY, library, **environment), range(3)))
    assert all("'simulation'" in run.stdout for run in runs), runs
    assert sum(run.stdout.count("building") for run in runs) == 1
    assert "building" not in load(**environment).stderr, "it is cached"

    (folder,) = (path for path in tmp_path.glob("sbnref_simulation-*") if path.is_dir())
    (folder / "sbnref_simulation.so").write_bytes(b"not a library")
    broken = load(**environment, code=1)
    assert f"does not load: {folder}" in broken.stderr
    assert f"delete {folder} to build it again" in broken.stderr


def test_an_installed_library_that_does_not_load(monkeypatch, tmp_path, real):
    monkeypatch.setattr(build, "INSTALLED", tmp_path)
    (tmp_path / KERNELS.installed).write_bytes(b"not a library")
    with pytest.raises(build.BuildError, match=r"installed with sbnref, does not load with PyTorch .*; install sbnref"):
        build._open(KERNELS, build.built(KERNELS))


@pytest.mark.parametrize("lack", ["an older GPU", "an AMD GPU", "CUDA 12"])
def test_an_installed_library_needs_its_gpus_unless_compiled_for_this_machine(
    monkeypatch, tmp_path, real, lack, cuda_home
):
    monkeypatch.setattr(build, "INSTALLED", tmp_path)
    (tmp_path / KERNELS.installed).touch()
    assert build.built(KERNELS) == tmp_path / KERNELS.installed
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda i: (7, 5) if lack == "an older GPU" else (9, 0))
    monkeypatch.setattr(torch.version, "hip", "7.0" if lack == "an AMD GPU" else None)
    cuda = {"an older GPU": "13.0", "an AMD GPU": None, "CUDA 12": "12.8"}
    monkeypatch.setattr(torch.version, "cuda", cuda[lack])
    assert build.built(KERNELS) is None
    if lack == "CUDA 12":
        cuda_home("13.0")
        with pytest.raises(
            build.BuildError, match=r"built with CUDA 12\.8 \(the kernels in wheels need CUDA 13\), and"
        ):
            build._check_tools(KERNELS)
    (tmp_path / build.COMPILED_CUDA).touch()
    assert build.built(KERNELS) == tmp_path / build.COMPILED_CUDA


def test_nvcc_gets_the_architectures(real, cuda_home, monkeypatch):
    home = cuda_home("13.0")
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0a;12.0+PTX")
    command = build.nvcc_command()
    assert command[0] == str(home / "bin" / "nvcc")
    codes = ("80,code=sm_80", "90a,code=sm_90a", "120,code=sm_120", "120,code=compute_120")
    assert [word for word in command if "gencode" in word] == [f"-gencode=arch=compute_{code}" for code in codes]
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    with pytest.raises(build.BuildError, match=r"such as 9\.0 or 9\.0\+PTX in TORCH_CUDA_ARCH_LIST, got Hopper"):
        build._check_tools(KERNELS)


# ---- the toolkit ----


@pytest.fixture
def places(monkeypatch, tmp_path):
    """Return the places where toolkits are searched, all empty; the packages share one release."""
    for variable in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(variable, raising=False)
    names = {name: tmp_path / name for name in ("named", "path", "system", "packages")}
    nvcc = names["path"] / "bin" / "nvcc"
    monkeypatch.setattr(shutil, "which", lambda _: str(nvcc) if nvcc.exists() else None)
    monkeypatch.setattr(toolkit, "SYSTEM", names["system"])
    monkeypatch.setattr(toolkit, "_package_homes", lambda _: [names["packages"]])
    monkeypatch.setattr(toolkit.importlib.metadata, "version", lambda _: "13.0.88")
    return names


def test_the_order(places, monkeypatch):
    found = []
    for name in ("packages", "system", "path"):
        home = made_up(places[name], "13.0")
        found.append(find_toolkit("13.0"))
        assert found[-1].home == home
    home = made_up(places["named"], "13.0")
    assert find_toolkit("13.0").home == places["path"], "nothing names it yet"
    monkeypatch.setenv("CUDA_HOME", str(home))
    found.append(find_toolkit("13.0"))
    assert [str(one) for one in found] == [
        f"CUDA 13.0 in {places['packages']}, from this Python's packages",
        f"CUDA 13.0 in {places['system']}, of the system",
        f"CUDA 13.0 in {places['path']}, which is on the PATH",
        f"CUDA 13.0 in {places['named']}, which CUDA_HOME names",
    ]


def test_another_release_is_passed_over_but_not_where_it_was_named(places, monkeypatch):
    made_up(places["path"], "12.8")
    made_up(places["system"], "13.1")
    assert find_toolkit("13.0").home == places["system"]
    monkeypatch.setenv("CUDA_HOME", str(places["path"]))
    with pytest.raises(NoToolkit) as error:
        find_toolkit("13.0")
    found = f"{places['path'] / 'bin' / 'nvcc'}, which CUDA_HOME names, is of CUDA 12.8"
    advice = f"unset CUDA_HOME, then install it with: {COMMAND}"
    assert str(error.value).startswith(f"building needs nvcc of CUDA 13.0: {found}; {advice}")


def test_nvcc_by_a_link(places):
    home = made_up(places["system"].with_name("elsewhere"), "13.0")
    link = places["path"] / "bin" / "nvcc"
    link.parent.mkdir(parents=True)
    link.symlink_to(home / "bin" / "nvcc")
    assert find_toolkit("13.0").home == home


def test_none(places, monkeypatch):
    with pytest.raises(NoToolkit) as error:
        find_toolkit("13.0")
    assert str(error.value).startswith(f"building needs nvcc of CUDA 13.0: none was found; install it with: {COMMAND} ")
    monkeypatch.setenv("CUDA_HOME", "/nonexistent")
    with pytest.raises(NoToolkit, match="CUDA_HOME names /nonexistent, which has no bin/nvcc"):
        find_toolkit("13.0")
    monkeypatch.delenv("CUDA_HOME")  # pip has no nvcc for CUDA 12
    with pytest.raises(NoToolkit, match=r"none was found; install the CUDA toolkit 12\.8 and set CUDA_HOME"):
        find_toolkit("12.8")


def test_packages_of_different_releases(places, monkeypatch):
    made_up(places["packages"], "13.0")
    versions = {"nvidia-cuda-nvcc": "13.0.88", "nvidia-cuda-crt": "13.5.37", "nvidia-nvvm": "13.5.37"}
    monkeypatch.setattr(toolkit.importlib.metadata, "version", versions.get)
    message = r"are of different releases, nvidia-cuda-nvcc 13\.0\.88, nvidia-cuda-crt 13\.5"
    with pytest.raises(NoToolkit, match=message):
        find_toolkit("13.0")


@pytest.mark.parametrize("script", ["#!/bin/sh\necho a word\n", "not a program"])
def test_an_nvcc_that_does_not_tell_its_version(places, script):
    made_up(places["system"], "13.0")
    (places["system"] / "bin" / "nvcc").write_text(script)
    with pytest.raises(NoToolkit, match="of the system, does not print its version"):
        find_toolkit("13.0")
