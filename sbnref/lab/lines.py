"""Find the source lines of instructions, from their addresses in a library compiled with ``-g1``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..impls.simulation import CSRC, SIMULATION

OPTIONS = {  # the options of each command that finds lines; the library's path comes last
    "addr2line": ("--inlines", "--addresses", "--exe"),
    "llvm-addr2line": ("--inlines", "--addresses", "--exe"),
    "llvm-symbolizer": ("--output-style=GNU", "--functions=none", "--inlines", "--addresses", "--obj"),
}


class Place(NamedTuple):
    """A line of a source file."""

    file: str
    line: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def places(
    library: Path,
    sites: Sequence[Iterable[int]],  # of each site the return addresses in the library of the calls that lead to it
) -> list[list[Place]]:
    """Return the lines of user code of each site, innermost first."""
    lines = lines_of(library, {address for site in sites for address in site})
    return [
        list(dict.fromkeys(place for address in site for place in lines[address] if _is_of_the_user(place.file)))
        for site in sites
    ]


def _is_of_the_user(file: str) -> bool:
    """Return whether a file is neither the system's nor part of the simulation."""
    folder, name = os.path.split(file)
    system = folder.startswith(("/usr/include", "/usr/lib")) or "/include/c++/" in folder or "/torch/include" in folder
    simulated = folder.startswith(os.path.realpath(SIMULATION))
    primitive = folder.startswith(os.path.realpath(CSRC)) and name in ("device.cuh", "exports.cuh")
    return not (system or simulated or primitive)


def lines_of(library: Path, returns: Iterable[int]) -> dict[int, list[Place]]:
    """Return the lines of calls, by their return addresses in a library.

    After the line of a call come the lines into which it was inlined. Unknown lines are left out; all are unknown if no
    command of :data:`OPTIONS` is installed.
    """
    addresses = sorted(set(returns))
    found: dict[int, list[Place]] = {address: [] for address in addresses}
    if (command := finder()) is None:
        return found
    output = subprocess.run(
        [command, *OPTIONS[command], str(library)],
        input="\n".join(hex(a - 1) for a in addresses),  # a call ends one byte before the address that it returns to
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    at = -1
    for line in output.splitlines():
        if line.startswith("0x"):
            at = int(line, 16) + 1
            continue
        file, _, number = re.sub(r" \(discriminator \d+\)$", "", line).rpartition(":")
        if number.isdigit() and at in found and file != "??":
            found[at].append(Place(os.path.realpath(file), int(number)))
    return found


def finder() -> str | None:
    """Return the command that finds lines, of binutils or of LLVM; None if neither is on the PATH."""
    return next(filter(shutil.which, OPTIONS), None)
