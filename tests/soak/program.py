"""What the soak draws: a small model, what each rank feeds it step after step, how it is run, and what goes wrong.

A program prints as Python that runs it again, so that the smallest one that fails is its own report.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import assume, strategies

from sbnref.modes import STATS_MODES

IMPLS = ("reference", "cpu", "cuda")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
FAULTS = ("raises", "gives bad input", "is killed", "exits", "hangs", "interrupts the program")
BLOCKS = ("once", "twice", "twins")  # a norm, one that is called twice, two on the same tensor


@dataclass(frozen=True)
class Norm:
    """A layer and what stands around it."""

    channels: int
    stats_mode: str
    affine: bool
    momentum: float | None
    running: bool
    block: str


@dataclass(frozen=True)
class Fault:
    """What happens to a rank, and when."""

    what: str
    rank: int
    step: int
    where: str  # 'forward' or 'backward'


@dataclass(frozen=True)
class Program:
    """Some training steps. Of every field the simplest choice comes first: there shrinking ends."""

    world_size: int
    norms: tuple[Norm, ...]
    steps: tuple[tuple[int, ...], ...]  # the batch size of each rank, step after step
    lengths: tuple[int, ...]  # of each rank's samples: inputs are (batch size, channels, length)
    split: int  # ranks before and from this one are groups of their own; 0 for the world
    impl: str
    dtype: torch.dtype
    half_parameters: bool
    layout: str
    values: str
    compiled: str  # a backend, or 'no'
    ddp: bool
    fault: Fault | None
    seed: int

    @property
    def parameter_dtype(self) -> torch.dtype:
        """Half inputs go with parameters of either kind."""
        return self.dtype if self.dtype.itemsize > 2 or self.half_parameters else torch.float32

    def group_of(self, rank: int) -> list[int]:
        """The ranks that share statistics with this one."""
        return [r for r in range(self.world_size) if not self.split or (r < self.split) == (rank < self.split)]

    def source(self) -> str:
        """A file that runs this program alone, from the folder ``tests``."""
        return f"import torch\nfrom soak.program import *\nfrom soak.run import run\n\nrun({self!r})\n"


@strategies.composite
def programs(draw: Callable[..., Any]) -> Program:
    """Programs, the simplest first."""
    some, one_of = strategies.integers, strategies.sampled_from
    world_size = draw(some(1, 3))
    norms = tuple(
        Norm(
            draw(one_of([1, 2, 3, 8, 17, 64])),
            draw(one_of(STATS_MODES)),
            draw(strategies.booleans()),
            draw(one_of([0.1, None, 1.0])),
            draw(strategies.booleans()),
            draw(one_of(BLOCKS)),
        )
        for _ in range(draw(some(1, 3)))
    )
    steps = tuple(tuple(draw(some(0, 5)) for _ in range(world_size)) for _ in range(draw(some(1, 3))))
    lengths = tuple(draw(one_of([1, 2, 7, 8, 33, 300])) for _ in range(world_size))
    split = draw(some(0, world_size - 1))
    fault = None
    if draw(some(0, 7)) == 7:
        rank, step = draw(some(0, world_size - 1)), draw(some(0, len(steps) - 1))
        fault = Fault(draw(one_of(FAULTS)), rank, step, draw(one_of(["forward", "backward"])))
    program = Program(
        world_size,
        norms,
        steps,
        lengths,
        split,
        draw(one_of(IMPLS)),
        draw(one_of(DTYPES)),
        draw(strategies.booleans()),
        draw(one_of(["contiguous", "channels last", "with gaps"])),
        draw(one_of(["normal", "a mean for each rank", "an outlier"])),
        draw(one_of(["no", "no", "no", "no", "no", "no", "aot_eager", "inductor"])),
        draw(strategies.booleans()),
        fault,
        draw(some(0, 2**16)),
    )
    for rank in range(world_size):  # one value per channel in a group of one is refused
        alone = len(program.group_of(rank)) == 1
        assume(not alone or all(sizes[rank] * lengths[rank] != 1 for sizes in steps))
    assume(fault is None or fault.what != "hangs" or program.compiled == "no")  # not while it compiles, at any rate
    return program
