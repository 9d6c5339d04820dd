"""The ladder of kernels: nine files for the laboratory, which compiles them, calls them and counts what they do."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from sbnref import lab
from sbnref.lab import SECTOR, THREADS, Counts, Kernels, channels_last, count

__all__ = [
    "KERNELS",
    "RUNGS",
    "THREADS",
    "Call",
    "Rung",
    "count",
    "fetched",
    "set_order",
]

KERNELS = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Rung:
    """A way to normalize.

    Attributes:
        source: the file with what is new.
        functions: of that file, in the order in which they are called. Where there are two, the first one writes
            this rank's payload and the second one reads the group's.
        splits: whether several blocks share a channel.
        width: elements that a thread takes at once, where the spatial size is a multiple of it.
        tile: channels that a block works on.
        dtype: of x and y.
    """

    source: str
    functions: tuple[str, ...]
    splits: bool = True
    width: int = 1
    tile: int = 1
    dtype: torch.dtype = torch.float32


RUNGS = {
    "1 naive": Rung("1_naive.cu", ("naive",), splits=False),
    "2 Welford": Rung("2_welford.cu", ("welford",), splits=False),
    "3 split": Rung("3_split.cu", ("split",)),
    "4 wide": Rung("4_wide.cu", ("wide",), width=4),
    "5 payload": Rung("5_payload.cu", ("payload_stats", "payload_apply"), width=4),
    "6 backwards": Rung(
        "6_backwards.cu", ("payload_stats", "backwards_apply"), width=4
    ),
    "7 channels-last": Rung(
        "7_channels_last.cu", ("channels_last_stats", "channels_last_apply"), tile=32
    ),
    "8 in flight": Rung(
        "8_in_flight.cu", ("in_flight_stats", "in_flight_apply"), width=4
    ),
    "9 half": Rung(
        "9_half.cu", ("half_stats", "half_apply"), width=8, dtype=torch.float16
    ),
}


def all_rungs(folder: Path = KERNELS, threads: int = THREADS) -> Kernels:
    """The rungs as one file: the last one includes the others."""
    functions = {name: None for rung in RUNGS.values() for name in rung.functions}
    return Kernels(folder / "9_half.cu", tuple(functions), threads)


class Call(lab.Call):
    """A rung and everything it needs for a tensor. :meth:`run` launches its kernels.

    Args:
        rung: a key of :data:`RUNGS`.
        x: (N, C, \\*) of the rung's dtype, contiguous or channels-last.
        weight: w, what this rank weighs.
        blocks: how many to launch at least, where several share a channel and there is work for them.
        threads: of a block.
        kernels: the folder of the sources, to try out a changed copy.

    Attributes:
        y: as x, the normalized tensor.
        payload: (3C + 2,) float64, [w mean, w var, w mean², w, m]; rungs 1 to 4 leave it alone.
        mean, var: (C,) float32; rungs 5 to 9 leave them alone.
    """

    def __init__(
        self,
        rung: str,
        x: Tensor,
        *,
        weight: float = 1,
        eps: float = 1e-5,
        blocks: int = 132,
        threads: int = THREADS,
        kernels: Path = KERNELS,
    ) -> None:
        self.rung = RUNGS[rung]
        if x.dtype != self.rung.dtype:
            raise ValueError(f"rung {rung} expects {self.rung.dtype}, got {x.dtype}")
        c, elements = x.shape[1], x[:, 0].numel()
        s = x[:1, :1].numel() or 1
        if self.rung.tile > 1 and not (channels_last(x) or 1 in (c, s)):
            raise ValueError(
                f"rung {rung} expects channels side by side, got strides {x.stride()}"
            )
        tiles = -(-c // self.rung.tile)
        width = self.rung.width if s % self.rung.width == 0 else 1
        positions = elements * self.rung.tile // width
        wanted = -(-blocks // tiles) if self.rung.splits else 1
        splits = max(1, min(wanted, positions // threads))
        compiled = all_rungs(kernels, threads)
        super().__init__(compiled, x, splits=splits, weight=weight, eps=eps)

    def run(self, *functions: str) -> Tensor:
        """Launch the kernels, those of some of the functions only where these are named; y."""
        return super().run(*functions or self.rung.functions)


def fetched(call: Call, counts: Counts, capacity: int) -> float:
    """The share of x that the last pass has to fetch past a cache of so many bytes.

    A model: the cache keeps the sectors used last; the blocks run all at once, in step.
    """
    launch, block, time, _, sector = counts.trace.T
    order = ((launch * (time.max() + 1) + time) * (block.max() + 1) + block).argsort(
        stable=True
    )
    in_last_pass = (launch == launch.max())[order].tolist()
    begin, end = (
        address // SECTOR
        for address in (call.addresses["x"], call.addresses["x"] + call.x.nbytes)
    )
    kept: OrderedDict[int, None] = OrderedDict()
    misses = 0
    for at, last in zip(sector[order].tolist(), in_last_pass, strict=True):
        if at in kept:
            kept.move_to_end(at)
            continue
        misses += last and begin <= at < end
        kept[at] = None
        if len(kept) > capacity // SECTOR:
            kept.popitem(last=False)
    return misses / (end - begin)


def set_order(order: str, kernels: Path = KERNELS) -> None:
    """In which order blocks and threads take turns: ``ascending``, ``descending`` or ``random:SEED``."""
    lab.set_order(order, all_rungs(kernels))
