"""The ladder of tutorial 5: nine files of kernels to compile, call and count."""

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
    "draw",
    "fetched",
    "set_order",
]

KERNELS = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Rung:
    """A way to normalize.

    Attributes:
        source: the file with the new idea.
        functions: to call, in this order. Of two functions, the first one writes this
            rank's payload and the second one reads the group's payload.
        splits: whether several blocks share a channel.
        width: elements per access, if the spatial size is a multiple of it.
        tile: channels per block.
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
    """Return all rungs as one file: the last one includes the others."""
    functions = {name: None for rung in RUNGS.values() for name in rung.functions}
    return Kernels(folder / "9_half.cu", tuple(functions), threads)


class Call(lab.Call):
    """A rung with its arrays for a tensor. :meth:`run` launches its kernels.

    Args:
        rung: a key of :data:`RUNGS`.
        x: (N, C, \\*) of the rung's dtype, contiguous or channels-last.
        weight: w, the weight of this rank.
        blocks: the least number of blocks, if several share a channel and have work.
        threads: of a block.
        kernels: the folder of the sources; pass a changed copy to try it out.

    Attributes:
        y: as x, the normalized tensor.
        payload: (3C + 2,) float64, [w mean, w var, w mean², w, m]; from rung 5 on.
        mean, var: (C,) float32; unused by rungs 5 to 9.
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
        """Launch all kernels, or only the named functions, and return y."""
        return super().run(*functions or self.rung.functions)


def fetched(call: Call, counts: Counts, capacity: int) -> float:
    """Return the share of x that the last pass fetches, with a cache of ``capacity``.

    A model: the cache keeps the sectors used last; all blocks run at once, in step.
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


def draw(table: dict[str, dict[str, float]], multiprocessors: int) -> None:
    """Draw the columns of the table in which the rungs gain, the first rung on top."""
    import matplotlib.pyplot as plt

    titles = {
        "moved": "bytes moved, over x",
        "blocks": "blocks of the first launch",
        "instructions": "access instructions",
        "launches": "launches",
        "fetched": "share of x fetched again (model)",
        "error": "error at 1000 deviations",
    }
    marks = {"moved": 3, "blocks": multiprocessors}
    figure, axes = plt.subplots(2, 3, figsize=(9, 5), sharey=True)
    names = list(table)
    for ax, (column, title) in zip(axes.flat, titles.items(), strict=True):
        ax.plot([table[name][column] for name in names], names, "o")
        if column in marks:
            ax.axvline(marks[column], color="gray", linewidth=0.8)
        if column == "error":
            ax.set_xscale("log")
        else:
            ax.set_xlim(left=0)
            ax.locator_params(axis="x", nbins=4)
        ax.set_xlabel(title)
        ax.grid(axis="y", linewidth=0.4)
    axes[0, 0].invert_yaxis()
    figure.suptitle(
        "Almost every rung improves one number (gray: floor, multiprocessors)"
    )
    plt.show()


def set_order(order: str, kernels: Path = KERNELS) -> None:
    """Set the order of blocks and threads: ascending, descending or random:SEED."""
    lab.set_order(order, all_rungs(kernels))
