"""Find the CUDA toolkit that compiles the kernels: nvcc, its headers, and the runtime to link.

If ``CUDA_HOME`` or else ``CUDA_PATH`` is set, only that folder counts. Otherwise the nvcc on the PATH,
``/usr/local/cuda`` and the packages of this Python (the extra ``cuda-toolkit``) are tried in this order.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SYSTEM = Path("/usr/local/cuda")
PACKAGES = ("nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-nvvm")  # they call each other, so they need one release


class NoToolkit(LookupError):
    """No toolkit fits; the message names the toolkits found and the one to install."""


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit.

    Attributes:
        home: its folder, with ``bin/nvcc`` and ``include``.
        release: the release of its nvcc, such as ``13.0``.
        origin: where it was found, in words.
    """

    home: Path
    release: str
    origin: str

    def __str__(self) -> str:
        return f"CUDA {self.release} in {self.home}, {self.origin}"


def find_toolkit(wanted: str) -> Toolkit:
    """Return the toolkit for a PyTorch built with the CUDA release ``wanted``, such as ``13.0``.

    A toolkit fits if its major version is the same. If ``CUDA_HOME`` is set, only that folder is tried.

    Raises:
        NoToolkit: none fits; the message names the toolkits found, the release wanted and the command to install it.
    """
    misfits = []
    for home, origin in _candidates(wanted):
        nvcc = home / "bin" / "nvcc"
        release = _release(nvcc)
        if release is None:
            misfits.append(f"{nvcc}, {origin}, does not print its version")
        elif _major(release) != _major(wanted):
            misfits.append(f"{nvcc}, {origin}, is of CUDA {release}")
        elif home in _package_homes(wanted) and (mixed := _mixed()):
            misfits.append(f"the packages in {home} are of different releases, {mixed}")
        else:
            return Toolkit(home, release, origin)
    if not misfits and (named := _named()) is not None:
        misfits.append(f"CUDA_HOME names {named}, which has no bin/nvcc and include/cuda_runtime_api.h")
    found = "; ".join(misfits) or "none was found"
    raise NoToolkit(f"building needs nvcc of CUDA {wanted}: {found}; {how_to_install(wanted)}")


def how_to_install(wanted: str) -> str:
    """Return the instruction to install the toolkit of the CUDA release ``wanted``."""
    # NVIDIA's Python packages of CUDA 12 do not contain nvcc.
    if int(_major(wanted)) < 13:
        return f"install the CUDA toolkit {wanted} and set CUDA_HOME to its folder"
    unset = "unset CUDA_HOME, then " if _named() is not None else ""
    return (
        f"{unset}install it with: pip install 'cuda-toolkit[nvcc,nvvm,crt,cccl]=={wanted}.*' "
        "(or set CUDA_HOME to the folder of one that is installed)"
    )


def _named() -> str | None:
    """Return the folder in CUDA_HOME or CUDA_PATH, as PyTorch does."""
    return os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH") or None


def _candidates(wanted: str) -> Iterator[tuple[Path, str]]:
    if (named := _named()) is not None:
        places = [(Path(named), "which CUDA_HOME names")]
    else:
        places = [(SYSTEM, "of the system")]
        if (on_path := shutil.which("nvcc")) is not None:
            nvcc = Path(on_path)  # in the toolkit, or a link to it
            places = [(file.parents[1], "which is on the PATH") for file in (nvcc, nvcc.resolve())] + places
        places += [(home, "from this Python's packages") for home in _package_homes(wanted)]
    for home, origin in dict(places).items():
        if all((home / part).exists() for part in ("bin/nvcc", "include/cuda_runtime_api.h")):
            yield home, origin


def _package_homes(wanted: str) -> list[Path]:
    spec = importlib.util.find_spec("nvidia")  # a namespace of many packages, perhaps in several places
    return [Path(place) / f"cu{_major(wanted)}" for place in (spec and spec.submodule_search_locations) or ()]


def _release(nvcc: Path) -> str | None:
    try:
        output = subprocess.run([str(nvcc), "--version"], capture_output=True, text=True, check=False).stdout
    except OSError:  # not executable here
        return None
    found = re.search(r"release (\d+\.\d+)", output)
    return found[1] if found else None


def _major(release: str) -> str:
    return release.split(".")[0]


def _mixed() -> str | None:
    """Return the releases of the packages that call each other, in words, or None if they are the same."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "missing"
    releases = {".".join(version.split(".")[:2]) for version in versions.values()}
    return ", ".join(f"{name} {version}" for name, version in versions.items()) if len(releases) > 1 else None
