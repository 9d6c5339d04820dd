"""Imported by a program, ends it with status 9 if threads of gloo are left at its exit: such a thread may abort it."""

import atexit
import os
import sys
from pathlib import Path


def _check() -> None:
    names = [(task / "comm").read_text().strip() for task in Path("/proc/self/task").glob("*")]  # none on macOS
    if left := [name for name in names if "gloo" in name]:
        print(f"these threads are left at the end: {left}", file=sys.stderr, flush=True)
        os._exit(9)


atexit.register(_check)
