"""What compiling with nvcc takes, without a GPU and with a PyTorch that was built without CUDA."""

import re
import shutil
from pathlib import Path

import pytest
from shared import process

from sbnref.impls.build import NVCC_FLAGS, STABLE

FLAGS = (*NVCC_FLAGS, STABLE)

needs_nvcc = pytest.mark.skipif(shutil.which("nvcc") is None, reason="skipped: there is no nvcc on the PATH")


def cuda_includes() -> list[str]:
    """Where the headers of nvcc's CUDA are, for the host's compiler."""
    said = process(Path(shutil.which("nvcc") or "").resolve(), "--dryrun", "-x", "cu", "/dev/null").stderr
    folders = set(re.findall(r'"-I(\S+?)"', said))
    return [argument for folder in sorted(folders) for argument in ("-isystem", folder)]


def compiled(command: list[str]) -> str:
    """Return what the compiler says, and expect it to succeed."""
    run = process(*command)
    return run.stdout + run.stderr
