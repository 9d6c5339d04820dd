"""Finding the CUDA toolkit that compiles the kernels: nvcc, its headers, and the runtime that is linked to.

It is looked for in the folder that ``CUDA_HOME`` names; where that is not set, on the system, by the nvcc on the PATH
and in ``/usr/local/cuda``; then among the packages of this Python, which the extra ``cuda-toolkit`` brings.
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
PACKAGES = ("nvidia-cuda-nvcc", "nvidia-cuda-crt", "nvidia-nvvm")  # one calls the other: they must be of one release


class NoToolkit(LookupError):
    """There is no toolkit of the release that is needed; the message says what there is and what to install."""


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit.

    Attributes:
        home: its folder, with ``bin/nvcc`` and ``include``.
        release: of its nvcc, such as ``13.0``.
        origin: how it was found, in words.
    """

    home: Path
    release: str
    origin: str

    def __str__(self) -> str:
        return f"CUDA {self.release} in {self.home}, {self.origin}"


def find_toolkit(wanted: str) -> Toolkit:
    """The toolkit to build with for a PyTorch of the CUDA release ``wanted``, such as ``13.0``.

    One fits whose major version is the same. A folder that ``CUDA_HOME`` names is taken, or refused; no other is.

    Raises:
        NoToolkit: none fits; the message names what was found, what was wanted and the command that installs it.
    """
    misfits = []
    for home, origin in _candidates(wanted):
        nvcc = home / "bin" / "nvcc"
        release = _release(nvcc)
        if release is None:
            misfits.append(f"{nvcc}, {origin}, does not tell its version")
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
    """What to do to have the toolkit of the CUDA release ``wanted``, in words."""
    # NVIDIA's packages of CUDA 12 are without nvcc itself.
    if int(_major(wanted)) < 13:
        return f"install the CUDA toolkit {wanted} and set CUDA_HOME to its folder"
    unset = "unset CUDA_HOME, then " if _named() is not None else ""
    return (
        f"{unset}install it with: pip install 'cuda-toolkit[nvcc,nvvm,crt,cccl]=={wanted}.*' "
        "(or set CUDA_HOME to the folder of one that is installed)"
    )


def _named() -> str | None:
    """What PyTorch reads too."""
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
    spec = importlib.util.find_spec("nvidia")  # a folder that many packages share, maybe in several places
    return [Path(place) / f"cu{_major(wanted)}" for place in (spec and spec.submodule_search_locations) or ()]


def _release(nvcc: Path) -> str | None:
    try:
        said = subprocess.run([str(nvcc), "--version"], capture_output=True, text=True, check=False).stdout
    except OSError:  # a file that cannot be run here
        return None
    found = re.search(r"release (\d+\.\d+)", said)
    return found[1] if found else None


def _major(release: str) -> str:
    return release.split(".")[0]


def _mixed() -> str | None:
    """The releases of the packages that call each other, in words, where they are not the same."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "missing"
    releases = {".".join(version.split(".")[:2]) for version in versions.values()}
    return ", ".join(f"{name} {version}" for name, version in versions.items()) if len(releases) > 1 else None
