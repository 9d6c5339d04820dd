"""Speed limits that follow from the kernels' machine code.

A kernel streams in one loop. The loop's instructions per access and the chip's issue rate bound the bytes that the
kernel can move per second, for any memory bandwidth.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from shared import process

from sbnref.lab.own_stages import WARP, issue_ceiling


def disassembler() -> str | None:
    """Return cuobjdump from the wheel, which needs ``nvidia-cuda-nvdisasm``, or from the toolkit; None without both."""
    nvidia = importlib.util.find_spec("nvidia")
    places = (nvidia and nvidia.submodule_search_locations) or ()
    folders = [str(folder) for place in places for folder in Path(place).glob("cu*/bin")]
    return shutil.which("cuobjdump", path=os.pathsep.join([*folders, os.environ["PATH"]]))


@dataclass(frozen=True)
class Loop:
    """One full iteration of the loop in which a kernel moves the data."""

    instructions: int  # issued by a warp per iteration
    loads: int  # from global memory, wide enough to count
    stores: int
    loaded: int  # bytes per thread
    begin: int  # address of the first instruction
    end: int  # of the last one

    @property
    def per_access(self) -> float:
        """Return the instructions per access of 16 bytes."""
        return self.instructions / (self.loads + self.stores)

    @property
    def ceiling(self) -> float:
        """Return the terabytes per second for which the chip can issue the instructions."""
        return issue_ceiling(self.per_access)


def kernels(file: Path, architecture: str) -> dict[str, list[tuple[int, str]]]:
    """Return every kernel's (address, instruction) pairs for an architecture, by mangled name."""
    tool = disassembler()
    assert tool is not None, "expected cuobjdump; install it with: pip install nvidia-cuda-cuobjdump"
    parts = re.split(r"Function : (\S+)", process(tool, "-sass", "-arch", architecture, file).stdout)[1:]
    line = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(.*?);")
    functions = zip(parts[::2], parts[1::2], strict=True)
    return {name: [(int(at, 16), code) for at, code in line.findall(body)] for name, body in functions}


def streaming_loop(code: list[tuple[int, str]], narrowest: int = 16) -> Loop:
    """Return the first loop with accesses of at least ``narrowest`` bytes.

    The path through the loop has most of these accesses and, among such paths, fewest instructions. After the last
    load it leads through the largest block; the iteration at the end of the data takes another path.
    """
    blocks = _blocks(code, narrowest)
    loops = sorted((to, at) for at, block in blocks.items() for to in block.successors if to <= at)  # head, last
    found = (loop for head, last in loops if (loop := _fastest(blocks, head, last)) is not None)
    loop = next(found, None)
    assert loop is not None, f"no loop moves {narrowest} bytes at a time"
    return loop


def in_flight(code: list[tuple[int, str]], loop: Loop) -> int:
    """Return the most bytes that a thread's loads in a loop request before the first result is used."""
    pending: dict[int, int] = {}  # bytes by register
    most = 0
    for at, text in code:
        if not loop.begin <= at <= loop.end:
            continue
        registers = [int(r) for r in re.findall(r"\bR(\d+)", text)]
        if pending.keys() & registers:
            pending = {}
        if (found := access(text)) and found[0] == "LDG":
            size = found[1]
            pending |= {registers[0] + k: min(size, 4) for k in range(-(-size // 4))}
            most = max(most, sum(pending.values()))
    return most


def resident_threads(registers: int, threads: int) -> int:
    """Return the threads that fit on a multiprocessor in blocks of ``threads``; a warp gets registers by the 256."""
    warps = min(65536 // (-(-registers // 8) * 256), 64)
    return warps // (threads // WARP) * threads


@dataclass
class _Block:
    end: int
    counts: np.ndarray = field(default_factory=lambda: np.zeros(4, int))  # accesses, -instructions, loads, bytes loaded
    successors: list[int] = field(default_factory=list)


def access(text: str) -> tuple[str, int] | None:
    """Return a global load's or store's kind (``LDG`` or ``STG``) and bytes; None for other instructions."""
    found = re.search(r"\b(LDG|STG)((?:\.[A-Z0-9]+)*)", text)
    if found is None:
        return None
    bits = re.search(r"\.[US]?(8|16|64|128)\b", found[2])
    return found[1], int(bits[1]) // 8 if bits else 4


def _blocks(code: list[tuple[int, str]], narrowest: int) -> dict[int, _Block]:
    """Return the basic blocks by start address."""
    jump = re.compile(r"\bBRA\b.*?(0x[0-9a-f]+)")
    targets = {int(m[1], 16) for _, text in code if (m := jump.search(text))}
    blocks: dict[int, _Block] = {}
    current = None
    for i, (at, text) in enumerate(code):
        if current is None or at in targets:
            if current is not None:
                current.successors.append(at)
            current = blocks[at] = _Block(at)
        current.end = at
        kind, size = access(text) or ("", 0)
        counted, load = size >= narrowest, size >= narrowest and kind == "LDG"
        current.counts += (counted, -1, load, load * size)
        if m := jump.search(text):
            current.successors.append(int(m[1], 16))
            always = not re.match(r"@|.*BRA\s+(?:\.\S+\s+)?!?U?P\d", text)
            if not always and i + 1 < len(code):
                current.successors.append(code[i + 1][0])
            current = None
        elif re.match(r"(EXIT|RET|BRX)\b", text):
            current = None
    return blocks


def _fastest(blocks: dict[int, _Block], head: int, last: int) -> Loop | None:
    """Return the best forward path from a loop's head to its last block through its largest block after the loads."""
    inside = {at: block for at, block in blocks.items() if head <= at <= last}
    loaded = max((at for at, block in inside.items() if block.counts[2]), default=head)
    largest = max((at for at in inside if at > loaded), key=lambda at: -inside[at].counts[1], default=loaded)

    @functools.cache
    def best(at: int, to: int) -> np.ndarray | None:
        block = inside[at]
        if at == to:
            return block.counts
        ways = [best(s, to) for s in block.successors if at < s <= to and s in inside]
        rest = max((way for way in ways if way is not None), key=tuple, default=None)
        return None if rest is None else block.counts + rest

    first, second = best(head, largest), best(largest, last)
    if first is None or second is None:
        return None
    accesses, size, loads, loaded = (first + second - inside[largest].counts).tolist()
    return Loop(-size, loads, accesses - loads, loaded, head, inside[last].end) if accesses else None
