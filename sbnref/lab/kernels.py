"""A file of kernels: compiled once, called on a tensor, and what it does to memory counted.

The file includes ``laboratory.cuh`` and defines functions that take a ``Problem``; ``forward`` where no other is named.
The host's compiler compiles it against the simulation of CUDA, for CPU tensors, and nvcc for CUDA tensors.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..impls.build import CSRC, NVCC_FLAGS, SIMULATION_FLAGS, use_toolkit
from ..impls.simulation.compiling import DoesNotCompile, cached, compile_for_host

SECTOR = 32  # bytes
THREADS = 256  # of a block, as laboratory.cuh has it
SPLITS = 132  # for which p.partials has room, where files of kernels are graded or compared
LABORATORY = CSRC / "laboratory"

# Calls are found on the stack where every function keeps a frame, and lines where nothing was optimized away.
RECORDING_FLAGS = ("-O0", "-g1", "-fno-omit-frame-pointer", "-DSBNREF_RECORDING")


@dataclass(frozen=True)
class Kernels:
    """A file of kernels.

    Attributes:
        file: its path.
        functions: of it, that take a ``Problem``, in the order in which they are called.
        threads: of a block, ``kThreads`` in the file; a power of two from 32 to 1024.
        recording: whether it is compiled for recordings, which makes it slow.
        built: the library, where it has been compiled already.
    """

    file: Path
    functions: tuple[str, ...] = ("forward",)
    threads: int = THREADS
    recording: bool = False
    built: Path | None = None


class _Array(ctypes.Structure):
    _fields_ = (("data", ctypes.c_void_p), ("size", ctypes.c_int64))

    @classmethod
    def of(cls, tensor: Tensor | None) -> _Array:
        return cls(None, 0) if tensor is None else cls(tensor.data_ptr(), tensor.numel())


ARRAYS = ("x", "y", "mean", "var", "partials", "payload", "tickets")
STAGE_ARRAYS = ("total", "gamma", "beta", "saved", "dy", "dx")
_SIZES = ("N", "C", "S", "stride_n", "stride_c", "stride_s", "splits")


class _Problem(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in _SIZES),
        *((name, ctypes.c_double) for name in ("weight", "eps")),
        *((name, _Array) for name in ARRAYS),
        *((name, ctypes.c_double) for name in ("divisor", "k")),
        *((name, _Array) for name in STAGE_ARRAYS),
        ("stream", ctypes.c_void_p),
    )


class Call:
    """Kernels and everything that they need for a tensor. :meth:`run` launches them.

    Args:
        kernels: what to launch.
        x: (N, C, \\*) float32, contiguous or channels-last.
        splits: how many blocks may share a channel.
        room: splits that there is room for in ``partials``, if more.
        weight: w, what this rank weighs.
        divisor: D of the second stage, 0 for max(W, 1).
        k: w / m, of the fourth stage.
        others: arrays of a ``Problem`` by their names, for those that are here by themselves (None: without it) and
            those that are not: ``total``, ``gamma``, ``beta``, ``saved``, ``dy``, ``dx``.

    Attributes:
        y: as x, for the normalized tensor.
        mean, var: (C,) float32, for the statistics.
        payload: (3C + 2,) float64, zeros, for [w mean, w var, w mean², w, m].
        partials: (3 · max(splits, room) · C,) float64, for what blocks leave for each other.
        tickets: (C,) int32, zeros.
        arrays: these and the others, by name.
    """

    y: Tensor
    mean: Tensor
    var: Tensor
    partials: Tensor
    payload: Tensor
    tickets: Tensor

    def __init__(
        self,
        kernels: Kernels,
        x: Tensor,
        *,
        splits: int = 1,
        room: int = 1,
        weight: float = 1,
        eps: float = 1e-5,
        divisor: float = 0,
        k: float = 0,
        **others: Tensor | None,
    ) -> None:
        self.kernels, self.x = kernels, x
        n, c = x.shape[:2]
        s = x[:1, :1].numel() or 1
        mean, var = x.new_empty(2, c)
        own = {
            "y": torch.empty_like(x),
            "mean": mean,
            "var": var,
            "payload": x.new_zeros(3 * c + 2, dtype=torch.float64),
            "partials": x.new_empty(c * max(splits, room) * 3, dtype=torch.float64),
            "tickets": x.new_zeros(c, dtype=torch.int32),
        }
        self.arrays = {name: t for name, t in {"x": x, **own, **others}.items() if t is not None}
        vars(self).update(self.arrays)
        strides = (c * s, 1, c) if channels_last(x) else (c * s, s, 1)
        first, more = ([_Array.of(self.arrays.get(name)) for name in names] for names in (ARRAYS, STAGE_ARRAYS))
        self._problem = _Problem(n, c, s, *strides, splits, weight, eps, *first, divisor, k, *more, None)
        self._loaded: tuple[Kernels, Any] | None = None

    def run(self, *functions: str) -> Tensor:
        """:meth:`launch`, and y."""
        self.launch(*functions)
        return self.y

    def launch(self, *functions: str) -> None:
        """Launch the kernels, those of some of the functions only where these are named.

        Raises:
            RuntimeError: the file does not compile, or its kernels do what CUDA does not allow.
        """
        if self._loaded is None or self._loaded[0] is not self.kernels:
            self._loaded = self.kernels, library(self.kernels, self.x.is_cuda)
        lib = self._loaded[1]
        if self.x.is_cuda:
            self._problem.stream = torch.cuda.current_stream().cuda_stream
        for function in functions or self.kernels.functions:
            check(getattr(lib, f"laboratory_{function}")(ctypes.byref(self._problem)))


def channels_last(x: Tensor) -> bool:
    """Whether the channels of (N, C, \\*) are side by side and their elements are not."""
    return x.shape[1] > 1 and x.stride(1) == 1 and x[:1, :1].numel() > 1


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
        """The bytes of the sectors that were touched, since memory moves whole sectors."""
        return SECTOR * len(self.trace)


def count(call: Call) -> Counts:
    """Run a call on CPU tensors and count."""
    lib = library(call.kernels)
    lib.laboratory_start_counting()
    try:
        call.run()
    finally:
        lib.laboratory_stop_counting()
    trace, counts = numbers(lib.laboratory_trace).view(-1, 5), numbers(lib.laboratory_counts).view(-1, 2)
    return Counts(
        launches=len(counts),
        blocks=len(trace[trace[:, 0] == 0, 1].unique()),
        read=int(counts[:, 0].sum()),
        written=int(counts[:, 1].sum()),
        requests=len(trace[:, 3].unique()),
        trace=trace,
    )


def set_order(order: str, kernels: Kernels) -> None:
    """In which order blocks and threads take turns: ``ascending``, ``descending`` or ``random:SEED``."""
    check(library(kernels).laboratory_set_order(order.encode()))


def library(kernels: Kernels, cuda: bool = False) -> Any:
    """The kernels as the file has them now, compiled once; the next process finds them.

    Raises:
        RuntimeError: they do not compile.
    """
    built = kernels.built or compiled(kernels, cuda)
    lib = ctypes.CDLL(str(built))
    for function in kernels.functions:
        getattr(lib, f"laboratory_{function}").restype = ctypes.c_char_p
    if not cuda:
        lib.laboratory_set_order.restype = ctypes.c_char_p
        lib.laboratory_trace.restype = lib.laboratory_counts.restype = ctypes.c_int64
    return lib


def compiled(kernels: Kernels, cuda: bool = False) -> Path:
    """The library's file, compiled unless it is there.

    Raises:
        RuntimeError: the kernels do not compile.
    """
    sources = [*CSRC.rglob("*"), *_included(kernels.file)]
    sources = [s for s in sources if s.suffix in (".h", ".cpp", ".cu", ".cuh")]
    flags = shlex.split(os.environ.get("SBNREF_CUDASIM_FLAGS", ""))
    unit, compile = translation_unit(kernels), _nvcc if cuda else simulate
    about = [unit, str(kernels), compile.__name__, os.environ.get("TORCH_CUDA_ARCH_LIST", ""), *flags]
    return cached("sbnref_laboratory", sources, about, lambda built: compile(built, kernels, flags))


def translation_unit(kernels: Kernels) -> str:
    """The source of a library with the kernels' functions: what a compiler of C++ or nvcc takes."""
    exports = "\n".join(f"EXPORT({function})" for function in kernels.functions)
    return f'#include "{kernels.file.resolve()}"\n\n#include "exports.cuh"\n\n{exports}\n'


def _included(file: Path) -> set[Path]:
    """The file and those beside it that it includes, and so on; what is not there is left to the compiler."""
    found: set[Path] = set()
    todo = [file]
    while todo:
        path = todo.pop()
        if path not in found and path.is_file():
            found.add(path)
            names = re.findall(r'^\s*#\s*include\s*"([^"]+)"', path.read_text(errors="replace"), re.MULTILINE)
            todo += [path.parent / name for name in names]
    return found


def simulate(built: Path, kernels: Kernels, more: Iterable[str] = ()) -> None:
    """Compile kernels against the simulation.

    Args:
        built: the library to make.
        kernels: what it is made of.
        more: flags of the compiler.

    Raises:
        DoesNotCompile: their file is why; it has no such function, for example.
        RuntimeError: what they are compiled with is why, or there is no compiler.
    """
    unit = built.with_name("kernels.cu")
    unit.write_text(translation_unit(kernels))
    flags = [*SIMULATION_FLAGS, *(RECORDING_FLAGS if kernels.recording else ()), *more]
    # After one error the compiler has much to say, and little that helps.
    about = ["-Wfatal-errors", f"-DSBNREF_THREADS={kernels.threads}", f"-I{LABORATORY}"]
    try:
        sources = [*map(str, _simulation(flags)), "-x", "c++", str(unit)]
    except DoesNotCompile as error:
        raise RuntimeError(f"the simulation does not compile: {error}") from None
    try:
        compile_for_host(built, *flags, *about, *sources)
    except DoesNotCompile as error:
        raise DoesNotCompile(_about(kernels, str(error))) from None


def _simulation(flags: list[str]) -> list[Path]:
    """The simulation, compiled once for all kernels."""
    folder = CSRC / "sim"
    sources = {name: folder / f"{name}.cpp" for name in ("cudasim", "recording", "watch")}
    return [
        cached(name, [*folder.glob("*.h"), source], flags, functools.partial(_compile_object, source, flags), ".o")
        for name, source in sources.items()
    ]


def _compile_object(source: Path, flags: list[str], built: Path) -> None:
    compile_for_host(built, *flags, "-c", str(source))


def _about(kernels: Kernels, said: str) -> str:
    """A compiler's complaint, for the one whose file it is about."""
    first = re.search(r"^(.+?):\d+:\d+: (?:fatal )?error: (.*)", said, re.MULTILINE)
    for function in kernels.functions:
        if first and Path(first[1]) != kernels.file and re.search(rf"\b{function}\b", first[2]):
            return f"expected {kernels.file} to define void {function}(const Problem&), and it does not"
    return said


def _nvcc(built: Path, kernels: Kernels, _: list[str]) -> None:
    from torch.utils import cpp_extension

    unit = built.with_name("kernels.cu")
    unit.write_text(translation_unit(kernels))
    link_folder = use_toolkit(built.parent)
    cpp_extension.load(
        built.stem,
        [str(unit)],
        extra_include_paths=[str(CSRC), str(LABORATORY)],
        extra_cuda_cflags=[*NVCC_FLAGS, f"-DSBNREF_THREADS={kernels.threads}"],
        extra_ldflags=[] if link_folder is None else [f"-L{link_folder}"],
        build_directory=str(built.parent),
        is_python_module=False,
    )


def check(error: bytes | None) -> None:
    """Raise what a library's function said went wrong."""
    if error is not None:
        raise RuntimeError(error.decode())


def numbers(get: Any) -> Tensor:
    """The int64 numbers that a library's function points to."""
    pointer = ctypes.POINTER(ctypes.c_int64)()
    size = get(ctypes.byref(pointer))
    if not size:
        return torch.zeros(0, dtype=torch.int64)
    return torch.frombuffer(bytearray(ctypes.string_at(pointer, 8 * size)), dtype=torch.int64)
