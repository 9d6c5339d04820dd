"""Compile with nvcc, without a GPU and with a PyTorch built without CUDA."""

import re
import shutil
from pathlib import Path

import pytest
from shared import process

from sbnref.impls.build import NVCC_FLAGS, STABLE

FLAGS = (*NVCC_FLAGS, STABLE)

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="skipped: there is no nvcc on the PATH")


def cuda_includes() -> list[str]:
    """Return the include options that give the host compiler the headers of nvcc's CUDA."""
    said = process(Path(shutil.which("nvcc") or "").resolve(), "--dryrun", "-x", "cu", "/dev/null").stderr
    folders = set(re.findall(r'"-I(\S+?)"', said))
    return [argument for folder in sorted(folders) for argument in ("-isystem", folder)]


def compiled(command: list[str]) -> str:
    """Run the compiler, expect success, and return its output."""
    run = process(*command)
    return run.stdout + run.stderr
