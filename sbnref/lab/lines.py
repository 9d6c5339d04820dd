"""Where in the source an instruction stands, from its addresses in a library that was compiled with ``-g1``."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

Frame = tuple[str, int]  # a file, and a line of it
OPTIONS = {  # of each command that finds lines; the file comes last
    "addr2line": ("--inlines", "--addresses", "--exe"),
    "llvm-addr2line": ("--inlines", "--addresses", "--exe"),
    "llvm-symbolizer": ("--output-style=GNU", "--functions=none", "--inlines", "--addresses", "--obj"),
}


def lines_of(library: Path, returns: Iterable[int]) -> dict[int, list[Frame]]:
    """The lines of calls.

    Args:
        library: the file.
        returns: addresses in it to which calls return.

    Returns:
        For each address the line of the call, and after it those into which it was inlined; what is not known is
        left out, and so is every line where no command is installed that finds them.
    """
    addresses = sorted(set(returns))
    found: dict[int, list[Frame]] = {address: [] for address in addresses}
    if (command := finder()) is None:
        return found
    said = subprocess.run(
        [command, *OPTIONS[command], str(library)],
        input="\n".join(hex(a - 1) for a in addresses),  # a call ends one byte before the address that it returns to
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    at = -1
    for line in said.splitlines():
        if line.startswith("0x"):
            at = int(line, 16) + 1
            continue
        file, _, number = re.sub(r" \(discriminator \d+\)$", "", line).rpartition(":")
        if number.isdigit() and at in found and file != "??":
            found[at].append((os.path.realpath(file), int(number)))
    return found


def finder() -> str | None:
    """Return the command that finds lines, of binutils or of LLVM; None if neither is on the PATH."""
    return next(filter(shutil.which, OPTIONS), None)
