"""Toolkits that are folders and a script, for tests of how one is found."""

from pathlib import Path


def made_up(home: Path, release: str) -> Path:
    """A folder that passes for the CUDA toolkit of a release."""
    (home / "bin").mkdir(parents=True)
    (home / "include").mkdir()
    (home / "include" / "cuda_runtime_api.h").touch()
    nvcc = home / "bin" / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.1'\n")
    nvcc.chmod(0o755)
    return home
