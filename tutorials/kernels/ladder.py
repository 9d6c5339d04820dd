"""The ladder of kernels as Python sees it: built once, called, and what it does to memory counted.

The same sources are compiled by the host's compiler against the simulation of CUDA, for CPU tensors, and by nvcc for
CUDA tensors. Built libraries are kept where sbnref's own are.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shlex
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import cpp_extension

from sbnref.impls.build import CSRC, NVCC_FLAGS, SIMULATION_FLAGS

from .compiling import cached, compile_for_host

KERNELS = Path(__file__).resolve().parent
SECTOR = 32  # bytes
THREADS = 256  # of a block, as in ladder.cuh


@dataclass(frozen=True)
class Rung:
    """A way to normalize.

    Attributes:
        source: the file with what is new.
        doors: of ``ladder.cu``, in the order in which they are called. Where there are two, the first one writes
            this rank's payload and the second one reads the group's.
        splits: whether several blocks share a channel.
        tile: channels that a block works on.
    """

    source: str
    doors: tuple[str, ...]
    splits: bool = True
    tile: int = 1


RUNGS = {
    "1 naive": Rung("1_naive.cu", ("naive",), splits=False),
    "2 Welford": Rung("2_welford.cu", ("welford",), splits=False),
    "3 split": Rung("3_split.cu", ("split",)),
    "4 wide": Rung("4_wide.cu", ("wide",)),
    "5 payload": Rung("5_payload.cu", ("payload_stats", "payload_apply")),
    "6 backwards": Rung("6_backwards.cu", ("payload_stats", "backwards_apply")),
    "7 channels-last": Rung(
        "7_channels_last.cu", ("channels_last_stats", "channels_last_apply"), tile=32
    ),
}


class _Array(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_int64))

    @classmethod
    def of(cls, tensor: Tensor) -> _Array:
        return cls(tensor.data_ptr(), tensor.numel())


_ARRAYS = ("x", "y", "mean", "var", "partials", "payload", "tickets")
_SIZES = ("N", "C", "S", "stride_n", "stride_c", "stride_s", "splits")


class _Problem(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_double) for name in ("weight", "eps")),
        *((name, _Array) for name in _ARRAYS),
        ("stream", ctypes.c_void_p),
    )


class Call:
    """A rung and everything it needs for a tensor. :meth:`run` launches its kernels.

    Args:
        rung: a key of :data:`RUNGS`.
        x: (N, C, \\*) float32, contiguous or channels-last.
        weight: w, what this rank weighs.
        blocks: how many to launch at least, where several share a channel and there is work for them.
        kernels: the folder of the sources, to try out a changed copy.

    Attributes:
        y: as x, the normalized tensor.
        payload: (2C + 2,) float64, [w mean, w (var + mean²), w, m]; rungs 1 to 4 leave it alone.
        mean, var: (C,) float32; rungs 5 to 7 leave them alone.
    """

    def __init__(
        self,
        rung: str,
        x: Tensor,
        *,
        weight: float = 1,
        eps: float = 1e-5,
        blocks: int = 132,
        kernels: Path = KERNELS,
    ) -> None:
        self.rung, self.x, self.kernels = RUNGS[rung], x, kernels
        n, c = x.shape[:2]
        s = x[:1, :1].numel() if n else 1
        channels_last = c > 1 and x.stride(1) == 1 and s > 1
        if self.rung.tile > 1 and not (channels_last or 1 in (c, s)):
            raise ValueError(
                f"rung {rung} expects channels side by side, got strides {x.stride()}"
            )
        tiles = -(-c // self.rung.tile)
        positions = (
            n * s * self.rung.tile // (4 if rung[0] in "456" and s % 4 == 0 else 1)
        )
        wanted = -(-blocks // tiles) if self.rung.splits else 1
        splits = max(1, min(wanted, positions // THREADS))
        self.y = torch.empty_like(x)
        self.mean, self.var = x.new_empty(2, c)
        self.payload = x.new_zeros(2 * c + 2, dtype=torch.float64)
        self.partials = x.new_empty(c * splits * 3, dtype=torch.float64)
        self.tickets = x.new_zeros(c, dtype=torch.int32)
        strides = (c * s, 1, c) if channels_last else (c * s, s, 1)
        arrays = (_Array.of(getattr(self, name)) for name in _ARRAYS)
        self._problem = _Problem(n, c, s, *strides, splits, weight, eps, *arrays, None)

    def run(self, *doors: str) -> Tensor:
        """Launch the kernels, those behind some of the doors only where they are named; y."""
        lib = library(self.x.is_cuda, self.kernels)
        if self.x.is_cuda:
            self._problem.stream = torch.cuda.current_stream().cuda_stream
        for door in doors or self.rung.doors:
            _check(getattr(lib, f"ladder_{door}")(ctypes.byref(self._problem)))
        return self.y


@dataclass(frozen=True)
class Counts:
    """What a call did to global memory, in the simulation.

    Attributes:
        launches: of kernels.
        blocks: of the first kernel.
        read, written: bytes that the threads asked for.
        requests: access instructions of warps.
        trace: (accesses of a warp x sectors, 5) int64, the columns launch, block, time (how often the warp had
            executed the instruction before), access and sector.
    """

    launches: int
    blocks: int
    read: int
    written: int
    requests: int
    trace: Tensor

    @property
    def moved(self) -> int:
        """Bytes of the sectors that were touched: memory moves whole sectors."""
        return SECTOR * len(self.trace)


def count(call: Call) -> Counts:
    """Run a call on CPU tensors and count."""
    lib = library(cuda=False, kernels=call.kernels)
    lib.ladder_start_counting()
    try:
        call.run()
    finally:
        lib.ladder_stop_counting()
    trace, counts = (
        _numbers(lib.ladder_trace).view(-1, 5),
        _numbers(lib.ladder_counts).view(-1, 2),
    )
    return Counts(
        launches=len(counts),
        blocks=len(trace[trace[:, 0] == 0, 1].unique()),
        read=int(counts[:, 0].sum()),
        written=int(counts[:, 1].sum()),
        requests=len(trace[:, 3].unique()),
        trace=trace,
    )


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
        for address in (call.x.data_ptr(), call.x.data_ptr() + call.x.nbytes)
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
    _check(library(cuda=False, kernels=kernels).ladder_set_order(order.encode()))


@functools.cache
def library(cuda: bool = False, kernels: Path = KERNELS) -> Any:
    """The rungs, compiled once; the next process finds them.

    Raises:
        RuntimeError: they do not compile.
    """
    sources = [*CSRC.rglob("*"), *kernels.glob("*")]
    sources = [s for s in sources if s.suffix in (".h", ".cpp", ".cu", ".cuh")]
    flags = shlex.split(os.environ.get("SBNREF_CUDASIM_FLAGS", ""))
    about = [str(cuda), os.environ.get("TORCH_CUDA_ARCH_LIST", ""), *flags]
    built = cached(
        "sbnref_ladder",
        sources,
        about,
        lambda built: (
            _nvcc(built, kernels) if cuda else _simulate(built, kernels, flags)
        ),
    )
    lib = ctypes.CDLL(str(built))
    for doors in RUNGS.values():
        for door in doors.doors:
            getattr(lib, f"ladder_{door}").restype = ctypes.c_char_p
    if not cuda:
        lib.ladder_set_order.restype = ctypes.c_char_p
        lib.ladder_trace.restype = lib.ladder_counts.restype = ctypes.c_int64
    return lib


def _simulate(built: Path, kernels: Path, more: list[str]) -> None:
    simulation = str(CSRC / "sim" / "cudasim.cpp")
    sources = [simulation, "-x", "c++", str(kernels / "ladder.cu")]
    compile_for_host(built, *SIMULATION_FLAGS, *more, *sources)


def _nvcc(built: Path, kernels: Path) -> None:
    cpp_extension.load(
        built.stem,
        [str(kernels / "ladder.cu")],
        extra_include_paths=[str(CSRC)],
        extra_cuda_cflags=list(NVCC_FLAGS),
        build_directory=str(built.parent),
        is_python_module=False,
    )


def _check(error: bytes | None) -> None:
    if error is not None:
        raise RuntimeError(error.decode())


def _numbers(get: Any) -> Tensor:
    pointer = ctypes.POINTER(ctypes.c_int64)()
    size = get(ctypes.byref(pointer))
    return torch.frombuffer(
        bytearray(ctypes.string_at(pointer, 8 * size)), dtype=torch.int64
    )
