"""Record the warps of a small launch in the simulation, instruction by instruction.

The simulation records the accesses of each thread, with the calls that led to them. Here the lanes of a warp that
execute one instruction for the n-th time become one step, as on a GPU, and every step gets its source lines. Blocks run
one after the other; within a block the warps take turns, one instruction each, and wait for each other at barriers.

**Bank conflicts** follow a model. Shared memory has 32 banks. In one cycle each bank delivers one word of 4 bytes, to
all lanes that request this word. An element with a multiple of 8 bytes is moved in pieces of 8, half a warp at a time,
any other element in pieces of 4, the whole warp at once. Every cycle of a piece beyond the first is a conflict.
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
MOST_ELEMENTS = 4096  # of x, to fit on a screen
MOST_STEPS = 5000  # to keep a recording below 300 kB


class Act(enum.IntEnum):
    """The kinds of instructions, in the order of ``csrc/simulation/state.h``."""

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
    """One instruction of a warp."""

    launch: int  #: index of the launch
    block: int
    warp: int  #: within its block
    act: Act
    site: int  #: index in the recording's sites
    array: int  #: index in the recording's arrays; -1 for a shuffle or a barrier
    bytes: int  #: of each lane's element or vector
    #: the active lanes, each with the offset of its element in the array, in bytes; in a shuffle, with its source lane
    lanes: dict[int, int] = field(default_factory=dict)
    conflicts: int = 0  #: extra cycles of shared memory, by the model above


@dataclass(frozen=True)
class Launch:
    """A kernel launch: the kernel's name, the number of blocks and the threads of a block."""

    kernel: str
    blocks: int
    threads: int


@dataclass(frozen=True)
class Array:
    """An array that kernels accessed."""

    name: str  #: in the source
    shared: bool  #: whether it is in shared memory, one for each block
    start: int  #: the address of its first byte in a memory from 0 without gaps; 0 in shared memory
    size: int  #: in bytes
    element: int  #: bytes of the narrowest access to it


@dataclass
class Recording:
    """The recording of one launch or several."""

    title: str
    shape: tuple[int, ...]  #: of x
    channels_last: bool  #: whether the channels of x are side by side
    launches: list[Launch]
    arrays: list[Array]  #: the arrays accessed
    sites: list[list[Place]]  #: for each, the lines of the calls that lead there, innermost first
    steps: list[Event]
    error: str | None = None  #: the error that the simulation found at the last step

    def counts(self) -> dict[str, int]:
        """Return the counters at the end.

        ``read`` and ``written`` are bytes of global memory that threads requested; ``accesses``, instructions of warps
        that access it; ``sectors``, the sectors moved, and ``again``, the sectors moved before; ``steps``, all
        instructions recorded; ``barriers``, the barriers that warps waited at; ``conflicts``, bank conflicts.
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
        """Return everything in JSON's types, in the short form for the player."""
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
    """Run a call's kernels, or only those of some functions, and record them.

    Raises:
        ValueError: the tensor is too large for a recording, or the kernels do too much.
        RuntimeError: the file does not compile, or a tool is missing. A fault of the kernels raises nothing; the
            recording ends there.
    """
    lib, title = library(call.kernels), title or call.kernels.file.name
    return take(lib, lambda: call.launch(*functions), call.x.shape, title, channels_last(call.x))


def take(
    lib: Any, run: Callable[[], object], shape: Sequence[int], title: str, channels_last: bool = False
) -> Recording:
    """Record the kernels of a library while ``run`` launches them, on an input of a shape or on a task's sizes.

    Raises:
        ValueError: the shape is too large, or the kernels do too much for a recording.
    """
    refuse_large(shape)
    error = None
    lib.cudasim_record(1)
    try:
        run()
    except RuntimeError as fault:
        error = str(fault)
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
        raise ValueError(f"expected {most}, got more; use a smaller tensor")
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
    """Return the 32-byte sectors that a step touches in an array that begins at ``start``."""
    return {
        sector
        for offset in step.lanes.values()
        for sector in range((start + offset) // SECTOR, (start + offset + step.bytes - 1) // SECTOR + 1)
    }


def bank_conflicts(step: Event) -> int:
    """Return the extra cycles of shared memory for a step."""
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


# ---- from threads to warps ----


def _steps(acts: list[list[int]], failed: bool) -> Iterator[Event]:
    """Yield the steps of all blocks. ``acts``: (N, 8), with the columns of ``csrc/simulation/recording.cpp``."""
    for _, of_block in itertools.groupby(acts, key=lambda act: act[:2]):
        warps: dict[int, _Warp] = defaultdict(_Warp)
        for act in of_block:
            step = warps[act[2] // WARP].take(act)
        ends_with = step if failed and act is acts[-1] else None
        yield from _in_turns([warp for _, warp in sorted(warps.items())], ends_with)


class _Warp:
    """Merge the acts of a warp's lanes into steps. Each lane's acts keep their order."""

    def __init__(self) -> None:
        self.first: list[Any] = [None, None]  # a linked list: a step, and the next node
        self.at: dict[int, list[Any]] = defaultdict(lambda: self.first)  # by lane: the node of its last step
        self.known: dict[tuple[object, int], list[Any]] = {}
        self.executed: Counter[tuple[int, object]] = Counter()

    def take(self, act: list[int]) -> Event:
        launch, block, thread, kind, site, array, offset, size = act
        lane = thread % WARP
        # All lanes take part in a shuffle or a barrier together, even from different source lines. A step accesses one
        # array, even if the instruction takes other lanes to another array.
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
    """Yield the steps of a block's warps, one of each in turn; no warp passes a barrier before the others reach it."""
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


# ---- arrays, and the short form ----


def _arrays(found: list[dict[str, Any]], acts: list[list[int]]) -> list[Array]:
    starts = _without_gaps({one["address"]: one["bytes"] for one in found if one["address"]})
    narrowest = {array: min(act[7] for act in acts if act[5] == array) for array in {act[5] for act in acts}}
    named = [(one["name"].removeprefix("p."), one["address"], one["bytes"]) for one in found]
    return [Array(name, not at, starts.get(at, 0), size, narrowest[i]) for i, (name, at, size) in enumerate(named)]


def _without_gaps(sizes: dict[int, int]) -> dict[int, int]:
    """Map the addresses of arrays to addresses without gaps, except gaps within sectors."""
    starts: dict[int, int] = {}
    end = to = 0  # the end of the previous array: real, and without gaps
    for address, size in sorted(sizes.items()):
        gap = address - end
        starts[address] = to + (gap if starts and gap < SECTOR else gap % SECTOR + SECTOR * bool(starts))
        end, to = address + size, starts[address] + size
    return starts


def _short(step: Event) -> list[Any]:
    """Return a step as [act, site, block, warp, lanes as bits] and, for an access, [array, bytes, conflicts, offsets].

    The offsets are that of the first active lane and the increment per lane, or a list of all. For a shuffle from lanes
    at a fixed distance they are this distance.
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
    """Return the input for recordings: (N, C, \\*) float32, normal with mean 1, always the same."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) + 1
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if channels_last else x
