"""Compile with nvcc, without a GPU and with a PyTorch built without CUDA."""

import re
import shutil
from collections.abc import Iterable
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


def compile_together(files: Iterable[Path], folder: Path, *options: str) -> None:
    """Compile files at once, each in its own namespace, in a tenth of the time."""
    files = list(files)
    headers = {line for file in files for line in re.findall("^#include .*", file.read_text(), re.MULTILINE)}
    spaces = [f'namespace in_{file.stem} {{\n#include "{file}"\n}}' for file in files]
    source = folder / "together.cu"
    source.write_text("\n".join([*sorted(headers), *spaces]))
    compiled(["nvcc", *options, "-arch=sm_90", "-c", str(source), "-o", str(folder / "together.o")])
