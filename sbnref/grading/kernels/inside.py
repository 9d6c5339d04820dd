"""In the process where somebody's kernels run: they are run, watched and counted."""

from __future__ import annotations

import ctypes
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...laboratory import Call, Kernels, count, record, set_order
from ...laboratory.kernels import ARRAYS, library, numbers

NOBODY = 0x7FC05EED  # the bits of a NaN that no arithmetic gives: of y before it is written
SPLITS = 132  # for which p.partials has room
WRITTEN = ("x", "payload", "tickets")  # before the first kernel


class Served:
    """Kernels that were compiled elsewhere.

    Args:
        file: their source.
        fast: the library in which accesses are counted.
        watched: the one in which they are watched.
    """

    def __init__(self, file: str, fast: str, watched: str) -> None:
        self._file, self._fast, self._watched = Path(file), Path(fast), Path(watched)

    def run(self, x: Tensor, splits: int, order: str) -> dict[str, Any]:
        """Launch the kernels once, watched.

        Returns:
            ``y``; ``refused``, what the simulation refused, or None; and ``frames``, int64, how the kernels came
            there, as :func:`cudasim_refused` tells it.
        """
        kernels = self._kernels(recording=True)
        call, lib = _call(kernels, x, splits), library(kernels)
        lib.cudasim_refused.restype = ctypes.c_int64
        set_order(order, kernels)
        lib.cudasim_start_watching()
        for name in ARRAYS:
            array: Tensor = getattr(call, name)
            address, size = ctypes.c_void_p(array.data_ptr()), ctypes.c_int64(array.numel())
            lib.cudasim_name(f"p.{name}".encode(), address, size, array.itemsize, int(name in WRITTEN))
        refused = None
        try:
            call.run()
        except RuntimeError as error:
            refused = str(error).removeprefix("simulated ")
        finally:
            lib.cudasim_stop_watching()
        frames = torch.zeros(0, dtype=torch.int64) if refused is None else numbers(lib.cudasim_refused)
        if refused is None and (left := call.tickets.nonzero()).numel():
            refused = f"p.tickets[{int(left[0])}] is {int(call.tickets[left[0]])} in the end; expected zero, as before"
        return {"y": call.y, "refused": refused, "frames": frames}

    def count(self, x: Tensor, splits: int) -> dict[str, Any]:
        """Launch the kernels once and count what they do to global memory: see :class:`sbnref.laboratory.Counts`."""
        counts = count(_call(self._kernels(recording=False), x, splits))
        names = ("launches", "blocks", "read", "written", "requests", "moved")
        return {name: getattr(counts, name) for name in names}

    def conflicts(self, x: Tensor, splits: int) -> dict[str, int]:
        """Launch the kernels once and count accesses of warps to shared memory, -1 where they are too many, and its
        banks' conflicts."""
        try:
            recording = record(_call(self._kernels(recording=True), x, splits))
        except ValueError:  # too much for a recording
            return {"shared": -1, "conflicts": 0}
        shared = sum(step.act.is_shared for step in recording.steps)
        return {"shared": shared, "conflicts": recording.counts()["conflicts"]}

    def _kernels(self, recording: bool) -> Kernels:
        return Kernels(self._file, recording=recording, built=self._watched if recording else self._fast)


def _call(kernels: Kernels, x: Tensor, splits: int) -> Call:
    call = Call(kernels, x, splits=splits, room=SPLITS)
    for array in (call.mean, call.var, call.partials):
        array.fill_(math.nan)
    call.y.view(torch.int32).fill_(NOBODY)
    return call
