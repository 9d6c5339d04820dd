"""What compiling with nvcc takes, without a GPU and with a PyTorch that was built without CUDA."""

import re
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest
from torch.utils.cpp_extension import COMMON_NVCC_FLAGS, include_paths

from sbnref.impls.build import CSRC, NVCC_FLAGS

FLAGS = ("-std=c++17", *COMMON_NVCC_FLAGS, *NVCC_FLAGS)

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="skipped: there is no nvcc on the PATH")


@pytest.fixture(scope="session")
def includes(tmp_path_factory) -> list[str]:
    """Where the headers are. PyTorch without CUDA lacks one that is generated when it is built; a stand-in serves."""
    stand_in = tmp_path_factory.mktemp("include")
    header = Path("c10/cuda/impl/cuda_cmake_macros.h")
    folders = [*include_paths(), sysconfig.get_paths()["include"]]
    if not any((folder / header).exists() for folder in map(Path, folders)):
        (stand_in / header).parent.mkdir(parents=True)
        (stand_in / header).write_text("#define C10_CUDA_BUILD_SHARED_LIBS\n")
        folders.append(str(stand_in))
    return [f"-I{CSRC}", *(argument for folder in folders for argument in ("-isystem", folder))]


def cuda_includes() -> list[str]:
    """Where the headers of nvcc's CUDA are, for the host's compiler."""
    nvcc = Path(shutil.which("nvcc") or "").resolve()
    said = subprocess.run([str(nvcc), "--dryrun", "-x", "cu", "/dev/null"], capture_output=True, text=True).stderr
    folders = set(re.findall(r'"-I(\S+?)"', said))
    return [argument for folder in sorted(folders) for argument in ("-isystem", folder)]


def compiled(command: list[str]) -> str:
    """What the compiler said; fails with it if it failed."""
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout + run.stderr
