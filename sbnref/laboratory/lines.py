"""Where in the source an instruction stands, from its addresses in a library that was compiled with ``-g1``."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable
from pathlib import Path

Frame = tuple[str, int]  # a file, and a line of it


def lines_of(library: Path, returns: Iterable[int]) -> dict[int, list[Frame]]:
    """The lines of calls.

    Args:
        library: the file.
        returns: addresses in it to which calls return.

    Returns:
        For each address the line of the call, and after it those into which it was inlined; what is not known is
        left out.

    Raises:
        RuntimeError: ``addr2line`` is missing.
    """
    addresses = sorted(set(returns))
    command = ["addr2line", "--inlines", "--addresses", f"--exe={library}"]
    try:
        # A call ends one byte before the address that it returns to.
        said = subprocess.run(
            command, input="\n".join(hex(a - 1) for a in addresses), capture_output=True, text=True, check=True
        ).stdout
    except FileNotFoundError:
        raise RuntimeError(
            "finding the lines of a recording takes addr2line, which is not on the PATH; "
            "it is part of binutils (Debian, Ubuntu: apt install binutils)"
        ) from None
    found: dict[int, list[Frame]] = {address: [] for address in addresses}
    at = -1
    for line in said.splitlines():
        if line.startswith("0x"):
            at = int(line, 16) + 1
            continue
        file, _, number = re.sub(r" \(discriminator \d+\)$", "", line).rpartition(":")
        if number.isdigit() and at in found:
            found[at].append((os.path.realpath(file), int(number)))
    return found
