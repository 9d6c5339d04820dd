"""In the process where somebody's kernels run: they are run, watched and counted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ... import Call, Kernels, count, set_order
from ...kernels import SPLITS, library, report
from ...watching import last_write, mark_unwritten, watch

WRITTEN = ("x", "payload", "tickets")  # before the first kernel
COUNTED = ("launches", "blocks", "read", "written", "requests", "moved")
NOTHING = torch.zeros(0, dtype=torch.int64)


class Worker:
    """Kernels that were compiled elsewhere.

    Args:
        file: their source.
        built: the library.
    """

    def __init__(self, file: str, built: str) -> None:
        self._kernels = Kernels(Path(file), built=Path(built))

    def run(self, x: Tensor, splits: int, order: str) -> dict[str, Any]:
        """Launch the kernels once, watched.

        Returns:
            ``y``, ``mean`` and ``var``; ``refused``, what the simulation refused, or None; and ``frames``, int64, how
            the kernels came there.
        """
        call = self._call(x, splits)
        set_order(order, call.kernels)
        refusal = watch(call, written=WRITTEN)
        what, frames = (None, NOTHING) if refusal is None else (refusal.what, refusal.frames)
        return {"y": call.y, "mean": call.mean, "var": call.var, "refused": what, "frames": frames}

    def writer(self, x: Tensor, splits: int, name: str, element: int) -> Tensor:
        """Launch the kernels once more, and tell how they came to write an element of an array last: frames, as above.

        Args:
            x, splits: the input.
            name: of the array, such as ``'y'``.
            element: of it, in the order of memory.
        """
        call = self._call(x, splits)
        set_order("ascending", call.kernels)
        watch(call, written=WRITTEN)
        return last_write(call, name, element)

    def count(self, x: Tensor, splits: int) -> dict[str, Any]:
        """Launch the kernels once and count what they do to global memory: see :class:`sbnref.lab.Counts`; and
        ``y``, which they wrote."""
        call = self._call(x, splits)
        counts = count(call)
        return {"y": call.y} | {name: getattr(counts, name) for name in COUNTED}

    def conflicts(self, x: Tensor, splits: int) -> dict[str, Any]:
        """Launch the kernels once and count accesses of warps to shared memory, and the conflicts of its banks; and
        ``y``, which they wrote."""
        call = self._call(x, splits)
        call.run()
        launches = report(library(self._kernels))["launches"]
        shared, conflicts = (sum(launch[key] for launch in launches) for key in ("shared_accesses", "conflicts"))
        return {"y": call.y, "shared": shared, "conflicts": conflicts}

    def _call(self, x: Tensor, splits: int) -> Call:
        call = Call(self._kernels, x, splits=splits, room=SPLITS)
        for array in (call.mean, call.var, call.partials):
            array.fill_(math.nan)
        mark_unwritten(call.y)
        return call
