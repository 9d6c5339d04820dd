"""What kernels spend, against the least that the work takes, and against the tutorials' ladder of kernels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MULTIPROCESSORS = 132  # of an H100: blocks that should be there
SHAPE = (16, 32, 28, 28)  # on which kernels are counted, in both memory formats, as tutorial 5 does
SMALL = (2, 16, 8, 8)  # on which bank conflicts are
LAYOUTS = ("contiguous", "channels_last")
_SIZE = 4 * 16 * 32 * 28 * 28  # bytes of x
_FLOOR = 3 * _SIZE  # two reads and a write
_FEWEST = _FLOOR // (32 * 16)  # access instructions of warps, where each lane moves 16 bytes
# Such a share of the least that is possible counts as all of it.
_NEAR = {"bytes": 0.9, "instructions": 0.8, "launches": 1.0, "blocks": 1.0}
RUNGS: dict[str, dict[str, dict[str, int]]] = json.loads(Path(__file__).with_name("rungs.json").read_text())


@dataclass(frozen=True)
class Spent:
    """What a launch on (16, 32, 28, 28) does to global memory.

    Attributes:
        layout: ``'contiguous'`` or ``'channels_last'``.
        launches: of kernels.
        blocks: of the first one.
        read, written: bytes that threads ask for.
        requests: access instructions of warps.
        moved: bytes of the sectors that those touch.
    """

    layout: str
    launches: int
    blocks: int
    read: int
    written: int
    requests: int
    moved: int

    def shares(self) -> dict[str, float]:
        """How near each figure is to the least, 0 to 1: ``bytes``, ``instructions``, ``launches``, ``blocks``."""
        shares = {
            "bytes": _FLOOR / max(self.moved, 1),
            "instructions": _FEWEST / max(self.requests, 1),
            "launches": 2 / max(self.launches, 1),
            "blocks": self.blocks / MULTIPROCESSORS,
        }
        return {name: min(1.0, share / _NEAR[name]) for name, share in shares.items()}

    def impossible(self) -> str | None:
        """What cannot be: fewer bytes than there are."""
        if self.read < _SIZE or self.written < _SIZE:
            return f"reads {self.read:,} bytes and writes {self.written:,}, where x and y have {_SIZE:,} each"
        return None

    def sizes(self) -> str:
        """The figures in words."""
        return (
            f"{self.moved / _SIZE:.2f} sizes of x moved (3 is the least), {self.requests:,} access instructions "
            f"({_FEWEST:,} at 16 bytes a lane), {self.launches} launches, {self.blocks} blocks"
        )


@dataclass(frozen=True)
class Efficiency:
    """What the kernels spend.

    Attributes:
        spent: for each of both memory formats.
        shared: accesses of warps to shared memory, on a small tensor; -1 where they were too many to be looked at.
        conflicts: of its banks, each of which takes as long as another access.
    """

    spent: list[Spent]
    shared: int
    conflicts: int

    @property
    def score(self) -> float:
        """The mean of all shares, that of shared accesses without a conflict among them."""
        shares = [share for spent in self.spent for share in spent.shares().values()]
        if self.shared > 0:
            shares.append(self.shared / (self.shared + self.conflicts))
        return sum(shares) / len(shares)

    def to_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON has."""
        spent = [asdict(one) | {"shares": one.shares(), "stands": stands(one)} for one in self.spent]
        return {"spent": spent, "shared": self.shared, "conflicts": self.conflicts}


def stands(spent: Spent) -> str:
    """Where on the ladder kernels stand, and what the next rung does with less."""
    better = {
        name: ", ".join(_better(spent, figures[spent.layout]))
        for name, figures in RUNGS.items()
        if spent.layout in figures
    }
    names = list(better)
    reached = [-1, *(i for i, name in enumerate(names) if not better[name])][-1]
    if reached == len(names) - 1:
        return f"as rung {names[-1]}, the last one, or above"
    above = names[reached + 1]
    where = f"between rung {names[reached]} and rung {above}" if reached >= 0 else f"below rung {above}"
    return f"{where}; rung {above} {better[above]}"


def _better(spent: Spent, rung: dict[str, int]) -> Iterator[str]:
    """In what a rung is better by more than two parts in a hundred."""
    words = {
        "moved": "moves {ratio} of the bytes",
        "requests": "makes {ratio} of the access instructions",
        "launches": "takes {theirs} launches instead of {mine}",
    }
    for figure, text in words.items():
        mine, theirs = getattr(spent, figure), rung[figure]
        if theirs < 0.98 * mine:
            yield text.format(ratio=f"{theirs / mine:.2f}", mine=mine, theirs=theirs)
    if min(rung["blocks"], MULTIPROCESSORS) > spent.blocks:
        yield f"has {rung['blocks']} blocks instead of {spent.blocks}"
