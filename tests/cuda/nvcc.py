"""What compiling with nvcc takes, without a GPU and with a PyTorch that was built without CUDA."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from sbnref.impls.build import NVCC_FLAGS, STABLE

FLAGS = (*NVCC_FLAGS, STABLE)

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="skipped: there is no nvcc on the PATH")


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
