"""What the warps of a small launch do, one instruction after the other, as the simulation saw it.

The simulation notes what each thread does, and by which calls it got there. Here the lanes of a warp that execute the
same instruction for the same time become one step, as they are one instruction of the GPU's, and every step gets the
lines of the source that it stands in. The simulation runs one block after the other, and so does a recording; within a
block the warps take turns, an instruction each, and wait for each other at barriers.

**Bank conflicts** follow a model: shared memory has 32 banks, each of which gives one word of 4 bytes at a time, to all
lanes that ask for that word. An element whose size is a multiple of 8 bytes is moved in pieces of 8, half a warp at a
time, any other in pieces of 4, the whole warp at once. What a piece takes beyond one time is a conflict.
"""

from __future__ import annotations

import enum
import itertools
import json
import math
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .kernels import SECTOR, Call, channels_last, library, numbers
from .lines import Place, places

WARP = 32
MOST_ELEMENTS = 4096  # of x: what a screen shows
MOST_STEPS = 5000  # what stays below 300 kB


class Act(enum.IntEnum):
    """What an instruction does, in the order of ``csrc/simulation/state.h``."""

    READ, WRITE, ATOMIC, READ_SHARED, WRITE_SHARED, SHUFFLE, BARRIER = range(7)

    @property
    def is_global(self) -> bool:
        """Whether it accesses global memory."""
        return self <= Act.ATOMIC

    @property
    def is_shared(self) -> bool:
        """Whether it accesses shared memory."""
        return self in (Act.READ_SHARED, Act.WRITE_SHARED)


@dataclass
class Event:
    """What a warp does in one instruction."""

    launch: int  #: which of the kernels launched
    block: int
    warp: int  #: within its block
    act: Act
    site: int  #: which of the recording's sites it stands at
    array: int  #: which of the recording's arrays it accesses; -1 for a shuffle or a barrier
    bytes: int  #: of each lane's element or vector
    #: the active lanes, and where in the array each one's element begins, in bytes; in a shuffle the lane it reads from
    lanes: dict[int, int] = field(default_factory=dict)
    conflicts: int = 0  #: times that shared memory takes beyond what it has to, by the model above


@dataclass(frozen=True)
class Launch:
    """A kernel that was launched: its name, its blocks and the threads of each."""

    kernel: str
    blocks: int
    threads: int


@dataclass(frozen=True)
class Array:
    """An array that kernels accessed."""

    name: str  #: in the source
    shared: bool  #: whether it lies in shared memory, one for each block
    start: int  #: of its first byte, if memory began at 0 and had no gaps; 0 in shared memory
    size: int  #: in bytes
    element: int  #: bytes of the narrowest access to it


@dataclass
class Recording:
    """A launch, or several."""

    title: str
    shape: tuple[int, ...]  #: of x
    channels_last: bool  #: whether the channels of x are side by side
    launches: list[Launch]
    arrays: list[Array]  #: that were accessed
    sites: list[list[Place]]  #: for each, the lines of the calls that lead there, innermost first
    steps: list[Event]
    error: str | None = None  #: what the simulation refused; the last step is where

    def counts(self) -> dict[str, int]:
        """Return the counters at the end.

        ``read`` and ``written`` are bytes that threads asked for in global memory; ``accesses``, instructions of warps
        that access it; ``sectors``, those that these moved, and ``again``, those that had been moved before;
        ``steps``, all instructions recorded; ``barriers``, those that warps waited at; ``conflicts``, those of banks.
        """
        counts = dict.fromkeys(("read", "written", "accesses", "sectors", "again", "barriers", "conflicts"), 0)
        seen: set[int] = set()
        for step in self.steps:
            counts["barriers"] += step.act is Act.BARRIER
            counts["conflicts"] += step.conflicts
            if step.act.is_global:
                counts["read" if step.act is Act.READ else "written"] += step.bytes * len(step.lanes)
                counts["accesses"] += 1
                touched = sectors(self.arrays[step.array].start, step)
                counts["sectors"] += len(touched)
                counts["again"] += len(touched & seen)
                seen |= touched
        return counts | {"steps": len(self.steps)}

    def to_dict(self) -> dict[str, Any]:
        """Everything, in types that JSON has, and as short as the player takes it."""
        files = list(dict.fromkeys(file for site in self.sites for file, _ in site))
        first = {step.launch: i for i, step in reversed([*enumerate(self.steps)])}
        return {
            "title": self.title,
            "shape": list(self.shape),
            "channelsLast": self.channels_last,
            "launches": [vars(one) | {"begin": first.get(k, len(self.steps))} for k, one in enumerate(self.launches)],
            "arrays": [vars(array) for array in self.arrays],
            "files": [{"name": Path(f).name, "text": Path(f).read_text(errors="replace")} for f in files],
            "sites": [[[files.index(file), line] for file, line in site] for site in self.sites],
            "steps": [_short(step) for step in self.steps],
            "counts": self.counts(),
            "error": self.error,
        }


def record(call: Call, title: str = "", functions: Iterable[str] = ()) -> Recording:
    """Run a call's kernels, those of some of the functions only where these are named, and record what they do.

    Raises:
        ValueError: the tensor is too large for a recording, or what the kernels do with it is.
        RuntimeError: the file does not compile, or a tool is missing. What the simulation refuses is no error here
            but the recording's end.
    """
    lib, title = library(call.kernels), title or call.kernels.file.name
    return take(lib, lambda: call.launch(*functions), call.x.shape, title, channels_last(call.x))


def take(
    lib: Any, run: Callable[[], object], shape: Sequence[int], title: str, channels_last: bool = False
) -> Recording:
    """Record what the kernels of a library do while ``run`` launches them, on an input of a shape or on a task's sizes.

    Raises:
        ValueError: the shape is too large, or the kernels do too much for a recording.
    """
    refuse_large(shape)
    error = None
    lib.cudasim_record(1)
    try:
        run()
    except RuntimeError as refused:
        error = str(refused)
    finally:
        lib.cudasim_record(0)
    acts = numbers(lib.cudasim_acts).view(-1, 8).tolist()
    numbered: dict[int, int] = {}  # the sites of this recording, in the order of their first acts
    for act in acts:
        act[4] = numbered.setdefault(act[4], len(numbered))
    too_many = len(acts) > WARP * MOST_STEPS
    steps = [] if too_many else list(_steps(acts, failed=error is not None))
    if too_many or len(steps) > MOST_STEPS:
        most = f"at most {MOST_STEPS} instructions of warps for a recording"
        raise ValueError(f"expected {most}, and these kernels execute more; take a smaller tensor")
    recorded = json.loads(lib.cudasim_recorded())
    launches = [Launch(one["kernel"], math.prod(one["grid"]), math.prod(one["block"])) for one in recorded["launches"]]
    sites = places(Path(lib._name), [recorded["sites"][site] for site in numbered])
    launched = {one["line"] for one in recorded["launches"]}
    for site in sites:
        while len(site) > 1 and site[-1].line in launched:
            site.pop()
    arrays = _arrays(recorded["arrays"], acts)
    return Recording(title, tuple(shape), channels_last, launches, arrays, sites, steps, error)


def refuse_large(shape: Sequence[int]) -> None:
    """Raise ValueError if a tensor of that shape is too large for a recording."""
    if math.prod(shape) > MOST_ELEMENTS:
        most, given = f"at most {MOST_ELEMENTS} elements for a recording", f"shape {tuple(shape)}"
        raise ValueError(f"expected a tensor of {most}, got {given}, which has {math.prod(shape)}")


def sectors(start: int, step: Event) -> set[int]:
    """The 32-byte sectors that a step touches in an array that begins at ``start``."""
    return {
        sector
        for offset in step.lanes.values()
        for sector in range((start + offset) // SECTOR, (start + offset + step.bytes - 1) // SECTOR + 1)
    }


def bank_conflicts(step: Event) -> int:
    """Times that shared memory takes for a step beyond what it has to."""
    piece = 8 if step.bytes % 8 == 0 else min(step.bytes, 4)
    at_once = WARP * 4 // max(piece, 4)
    conflicts = 0
    for part, first in itertools.product(range(0, step.bytes, piece), range(0, WARP, at_once)):
        words = {
            word
            for lane, offset in step.lanes.items()
            if first <= lane < first + at_once
            for word in range((offset + part) // 4, (offset + part + piece - 1) // 4 + 1)
        }
        conflicts += max(Counter(word % 32 for word in words).values(), default=1) - 1
    return conflicts


# ---- from what threads do to what warps do ----


def _steps(acts: list[list[int]], failed: bool) -> Iterator[Event]:
    """The steps of all blocks. ``acts``: (N, 8), the columns are those of ``csrc/simulation/recording.cpp``."""
    for _, of_block in itertools.groupby(acts, key=lambda act: act[:2]):
        warps: dict[int, _Warp] = defaultdict(_Warp)
        for act in of_block:
            step = warps[act[2] // WARP].take(act)
        ends_with = step if failed and act is acts[-1] else None
        yield from _in_turns([warp for _, warp in sorted(warps.items())], ends_with)


class _Warp:
    """Puts together what lanes do, in an order that is each one's own."""

    def __init__(self) -> None:
        self.first: list[Any] = [None, None]  # a step, and the node after it: a list into which steps are inserted
        self.at: dict[int, list[Any]] = defaultdict(lambda: self.first)  # by lane: the node of what it did last
        self.known: dict[tuple[object, int], list[Any]] = {}
        self.executed: Counter[tuple[int, object]] = Counter()

    def take(self, act: list[int]) -> Event:
        launch, block, thread, kind, site, array, offset, size = act
        lane = thread % WARP
        # All lanes are at a shuffle or a barrier together, wherever in the source each of them is. An access is to one
        # array here, even where an instruction takes some lanes to another.
        instruction = (kind,) if kind >= Act.SHUFFLE else (kind, site, array)
        key = instruction, self.executed[lane, instruction]
        self.executed[lane, instruction] += 1
        if key not in self.known:
            step = Event(launch, block, thread // WARP, Act(kind), site, array, size)
            here = self.at[lane]
            here[1] = self.known[key] = [step, here[1]]
        self.at[lane] = self.known[key]
        step = self.at[lane][0]
        step.lanes[lane] = offset
        return step

    def __iter__(self) -> Iterator[Event]:
        node = self.first[1]
        while node is not None:
            yield node[0]
            node = node[1]


def _in_turns(warps: list[_Warp], ends_with: Event | None) -> Iterator[Event]:
    """The steps of a block's warps: one of each in turn, none past a barrier that another has yet to reach."""
    left = [iter(warp) for warp in warps]
    while left:
        turns = deque(left)
        while turns:
            warp = turns.popleft()
            step = next(warp, None)
            if step is None or step is ends_with:
                left = [other for other in left if other is not warp]
                continue
            step.lanes = dict(sorted(step.lanes.items()))
            step.conflicts = bank_conflicts(step) if step.act.is_shared else 0
            yield step
            if step.act is not Act.BARRIER:
                turns.append(warp)
    if ends_with is not None:
        yield ends_with


# ---- what the simulation calls things ----


def _arrays(found: list[dict[str, Any]], acts: list[list[int]]) -> list[Array]:
    starts = _without_gaps({one["address"]: one["bytes"] for one in found if one["address"]})
    narrowest = {array: min(act[7] for act in acts if act[5] == array) for array in {act[5] for act in acts}}
    named = [(one["name"].removeprefix("p."), one["address"], one["bytes"]) for one in found]
    return [Array(name, not at, starts.get(at, 0), size, narrowest[i]) for i, (name, at, size) in enumerate(named)]


def _without_gaps(sizes: dict[int, int]) -> dict[int, int]:
    """From addresses of arrays to where they would begin if memory had no gaps but within sectors."""
    starts: dict[int, int] = {}
    end = to = 0  # of the array before: its address, and where it would end
    for address, size in sorted(sizes.items()):
        gap = address - end
        starts[address] = to + (gap if starts and gap < SECTOR else gap % SECTOR + SECTOR * bool(starts))
        end, to = address + size, starts[address] + size
    return starts


def _short(step: Event) -> list[Any]:
    """[act, site, block, warp, lanes as bits] and, of an access, [array, bytes, conflicts, offsets]: the offset of the
    first active lane and what each lane adds, or a list of all. Of a shuffle that reads from lanes further on, how far.
    """
    head = [int(step.act), step.site, step.block, step.warp, sum(1 << lane for lane in step.lanes)]
    if step.act is Act.BARRIER:
        return head
    lanes, offsets = list(step.lanes), list(step.lanes.values())
    tail = [step.array, step.bytes, step.conflicts]
    if step.act is Act.SHUFFLE:
        delta = offsets[0] - lanes[0]
        down = all(source == (lane + delta if lane + delta < WARP else lane) for lane, source in step.lanes.items())
        return head + tail + ([delta] if down else [offsets])
    stride = (offsets[-1] - offsets[0]) // max(1, lanes[-1] - lanes[0])
    regular = all(o == offsets[0] + (lane - lanes[0]) * stride for lane, o in step.lanes.items())
    return head + tail + ([offsets[0], stride] if regular else [offsets])


def example(shape: tuple[int, ...], *, channels_last: bool = False) -> Tensor:
    """(N, C, \\*) float32, normal with mean 1, always the same: what is recorded."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 1
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x
