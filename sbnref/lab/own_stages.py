"""Record the package's own four kernels in the simulation, and count their traffic against its floor.

The floor is one read of every input and one write of every output: a normalization layer computes next to nothing, so
its time is its traffic. The simulation counts the bytes that the threads request, and the 32-byte sectors that the
accesses of each warp touch. Memory moves whole sectors, so more bytes in the same sector cost nothing extra.
"""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..debugging.launch_plan import launch_plan, plan_in_words
from ..debugging.report import Report
from ..impls import STAGES, build, cuda
from ..running import RunningStats
from .kernels import SECTOR, channels_last, declare
from .recording import WARP, Recording, take

if TYPE_CHECKING:
    from rich.console import RenderableType

ACCESS = 16  # bytes of the widest access of a thread
ISSUED = 4 * 1.755e9  # instructions that a multiprocessor of an H100 issues to its warps each second


def record_stages(x: Tensor, stages: Sequence[str] = STAGES) -> dict[str, Recording]:
    """Run stages on x, (N, C, \\*), as in training on one rank, and record them.

    Raises:
        ValueError: the tensor is too large for a recording.
        RuntimeError: the process does not simulate the kernels; set ``SBNREF_CUDASIM=1`` before they are loaded.
    """
    if (reason := cuda.why_not(torch.device("cpu"))) is not None:
        raise RuntimeError(f"recording needs the simulation: {reason}")
    lib = ctypes.CDLL(str(build.built(build.SIMULATION)))
    declare(lib)
    works = calls(x)
    return {stage: take(lib, works[stage], x.shape, stage, channels_last(x)) for stage in stages}


def calls(x: Tensor, *, tracking: bool = True) -> dict[str, Callable[[], object]]:
    """Return the four stages of a training step on x as calls, with inputs of the right shapes."""
    channels, dy = x.shape[1], x.clone()
    gamma, beta = x.new_ones(2, channels)
    running = RunningStats(x.new_zeros(channels), x.new_ones(channels), torch.tensor(0)) if tracking else None
    total = torch.ones(3 * channels + 2, dtype=torch.float64)
    total_back, saved = total[: 2 * channels].clone(), total.new_ones(4, channels)
    return {
        "forward_stats": lambda: cuda.forward_stats(x, 1),
        "forward_apply": lambda: cuda.forward_apply(x, total, None, gamma, beta, 1e-5, running, 0.1),
        "backward_stats": lambda: cuda.backward_stats(dy, x, saved),
        "backward_apply": lambda: cuda.backward_apply(dy, x, total_back, saved, gamma, 1.0),
    }


@dataclass(frozen=True)
class StageTraffic:
    """The traffic of one stage."""

    stage: str
    launches: int  # of kernels
    bytes_read: int  # requested by the threads
    bytes_written: int
    floor_read: int  # the sizes of the tensors that it has to read
    floor_written: int
    sector_efficiency: float  # bytes requested over bytes of the sectors; above 1 if threads request the same bytes
    ceiling: float | None  # TB/s for which an H100 can issue 16-byte accesses; its memory's 3.35 should be less
    plan: dict[str, Any]  # see launch_plan


class Traffic(Report):
    """The traffic of the four stages on a tensor of zeros, simulated. Printing it shows a table and the launch plans.

    Raises:
        BuildError: the simulation cannot be built.
        RuntimeError: this process does not simulate the kernels; set ``SBNREF_CUDASIM=1``.
    """

    def __init__(
        self,
        shape: tuple[int, ...],  # of the input, (N, C, *)
        dtype: torch.dtype = torch.float32,
        *,
        channels_last: bool = False,  # whether the channels are side by side in memory
        multiprocessors: int = 132,  # of the GPU to plan for; 132 for an H100 or H200
    ) -> None:
        if (reason := cuda.why_not(torch.device("cpu"))) is not None:
            raise RuntimeError(f"counting traffic needs the simulation: {reason}")
        self.shape, self.dtype, self.channels_last = shape, dtype, channels_last
        x = torch.zeros(shape, dtype=dtype)
        if channels_last:
            x = x.movedim(1, -1).contiguous().movedim(-1, 1)
        library = cuda.simulation()
        library.simulate_multiprocessors(multiprocessors)
        try:
            self.stages = [_count(stage, x, call, multiprocessors) for stage, call in calls(x, tracking=False).items()]
        finally:
            library.simulate_multiprocessors(0)

    def to_dict(self) -> dict[str, Any]:
        """Return everything in JSON's types."""
        return {
            "shape": list(self.shape),
            "dtype": str(self.dtype).removeprefix("torch."),
            "channels_last": self.channels_last,
            "stages": [vars(stage) for stage in self.stages],
        }

    def __rich__(self) -> RenderableType:
        from rich.console import Group
        from rich.table import Table

        table = Table(box=None, padding=(0, 1, 0, 0))
        table.add_column("stage", style="bold", no_wrap=True)
        for name in ("launches", "read", "of floor", "written", "of floor", "efficiency", "TB/s"):
            table.add_column(name, justify="right")
        for s in self.stages:
            moved = *_moved(s.bytes_read, s.floor_read), *_moved(s.bytes_written, s.floor_written)
            ceiling = "–" if s.ceiling is None else f"≤ {s.ceiling:.1f}"
            table.add_row(s.stage, str(s.launches), *moved, f"{s.sector_efficiency:.1%}", ceiling)
        layout = "channels-last" if self.channels_last else "channels-first"
        title = f"input {tuple(self.shape)}, {str(self.dtype).removeprefix('torch.')}, {layout}"
        return Group(title, "", table, "", *(f"{s.stage}: {plan_in_words(s.plan)}" for s in self.stages))


def _count(stage: str, x: Tensor, call: Callable[[], object], multiprocessors: int) -> StageTraffic:
    library = cuda.simulation()
    library.start_counting()
    try:
        call()
    finally:
        launches = library.stop_counting()
    keys = ("bytes_read", "bytes_written", "sectors")
    read, written, sectors = (sum(launch[key] for launch in launches) for key in keys)
    backward = stage.startswith("backward")
    plan = launch_plan(x, backward=backward, multiprocessors=multiprocessors)
    width, size = x.element_size(), x.numel() * x.element_size()
    ceiling = None
    if plan["vector"] * width >= ACCESS:
        budgets = json.loads((build.CSRC / "budgets.json").read_text(encoding="utf-8"))  # a test checks them with nvcc
        ceiling = issue_ceiling(budgets[stage][str(width)], multiprocessors)
    floors = size * (2 if backward else 1), size if stage.endswith("apply") else 0
    efficiency = (read + written) / (SECTOR * sectors) if sectors else 1.0
    return StageTraffic(stage, len(launches), read, written, *floors, efficiency, ceiling, plan)


def issue_ceiling(instructions: float, multiprocessors: int = 132) -> float:
    """Return the TB/s that an H100 can reach if each 16-byte access costs ``instructions`` warp instructions."""
    return multiprocessors * ISSUED / instructions * WARP * ACCESS / 1e12


def _moved(size: int, floor: int) -> tuple[str, str]:
    """Return bytes, and their ratio to the floor, in words."""
    return f"{size / 2**20:.3f} MiB", f"{size / floor:.4f}" if floor else "–"
