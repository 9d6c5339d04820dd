"""Compile a file of kernels, call it on a tensor, and count its memory accesses.

The file includes ``laboratory.cuh`` and defines functions that take a ``Problem``, by default ``forward``. The host's
compiler compiles it for the simulation, on CPU tensors, and nvcc for CUDA tensors.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..impls.build import CSRC, NVCC_FLAGS, nvcc_command
from ..impls.compiling import DoesNotCompile, cached, call_compiler
from ..impls.simulation import compile_library
from ..impls.simulation.rewrite import included

SECTOR = 32  # bytes
THREADS = 256  # of a block, by default, as in laboratory.cuh
LABORATORY = CSRC / "laboratory"


@dataclass(frozen=True)
class Kernels:
    """A file of kernels."""

    file: Path
    functions: tuple[str, ...] = ("forward",)  #: functions that take a ``Problem``, in the order of their calls
    threads: int = THREADS  #: threads of a block, ``kThreads`` in the file; a power of two from 32 to 1024


ARRAYS = ("x", "y", "mean", "var", "partials", "payload", "tickets")


class _Problem(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("N", "C", "S", "stride_n", "stride_c", "stride_s", "splits")),
        *((name, ctypes.c_double) for name in ("weight", "eps")),
        *((name, ctypes.c_void_p) for name in ARRAYS),
        ("stream", ctypes.c_void_p),
    )


class Call:
    """Kernels, and the arrays that they need for a tensor. :meth:`run` launches them.

    Args:
        kernels: the kernels to launch.
        x: (N, C, \\*), contiguous or channels-last; float32 unless the kernels cast the pointer.
        splits: the number of blocks that may share a channel.
        weight: w, the weight of this rank.

    Attributes:
        y: like x, for the normalized tensor.
        mean, var: (C,) float32, for the statistics.
        payload: (3C + 2,) float64, zeros, for [w mean, w var, w mean², w, m].
        partials: (3 · splits · C,) float64, for the partial results of blocks.
        tickets: (C,) int32, zeros.
        arrays: x and these, by name.
        addresses: the addresses of the arrays in the simulated GPU's memory, after a launch.
    """

    def __init__(self, kernels: Kernels, x: Tensor, *, splits: int = 1, weight: float = 1, eps: float = 1e-5) -> None:
        self.kernels, self.x = kernels, x
        n, c = x.shape[:2]
        s = x[:1, :1].numel() or 1
        self.y = torch.empty_like(x)
        self.mean, self.var = x.new_empty(2, c, dtype=torch.float32)
        self.payload = x.new_zeros(3 * c + 2, dtype=torch.float64)
        self.partials = x.new_empty(c * splits * 3, dtype=torch.float64)
        self.tickets = x.new_zeros(c, dtype=torch.int32)
        self.arrays: dict[str, Tensor] = {name: getattr(self, name) for name in ARRAYS}
        self.addresses: dict[str, int] = {}
        strides = (c * s, 1, c) if channels_last(x) else (c * s, s, 1)
        pointers = (self.arrays[name].data_ptr() for name in ARRAYS)
        self._problem = _Problem(n, c, s, *strides, splits, weight, eps, *pointers, None)
        self._loaded: tuple[Kernels | None, Any] = None, None

    def run(self, *functions: str) -> Tensor:
        """Launch the kernels, see :meth:`launch`, and return y."""
        self.launch(*functions)
        return self.y

    def launch(self, *functions: str) -> None:
        """Launch the kernels, or those of some of the functions.

        Args:
            functions: names of the file's functions; all if empty.

        Raises:
            RuntimeError: the file does not compile, or its kernels do something that CUDA does not allow.
        """
        if self._loaded[0] is not self.kernels:
            self._loaded = self.kernels, library(self.kernels, self.x.is_cuda)
        lib = self._loaded[1]
        if self.x.is_cuda:
            self._problem.stream = torch.cuda.current_stream().cuda_stream
        else:
            addresses = upload(lib, {f"p.{name}": array for name, array in self.arrays.items()})
            self.addresses = {name.removeprefix("p."): address for name, address in addresses.items()}
            for name, address in self.addresses.items():
                setattr(self._problem, name, address)
        try:
            for function in functions or self.kernels.functions:
                if (error := getattr(lib, f"laboratory_{function}")(ctypes.byref(self._problem))) is not None:
                    raise RuntimeError(error.decode())
        finally:
            if not self.x.is_cuda:
                lib.cudasim_download()


def channels_last(x: Tensor) -> bool:
    """Return whether the channels of (N, C, \\*) are side by side in memory, and their elements are not."""
    return x.shape[1] > 1 and x.stride(1) == 1 and x[:1, :1].numel() > 1


@dataclass(frozen=True)
class Counts:
    """The accesses of a call to global memory, in the simulation."""

    launches: int  #: number of kernel launches
    blocks: int  #: blocks of the first kernel
    read: int  #: bytes requested by the threads
    written: int
    requests: int  #: access instructions of warps
    #: (accesses of a warp x sectors, 5) int64, the columns launch, block, time (previous executions of the instruction
    #: by the warp), access and sector
    trace: Tensor

    @property
    def moved(self) -> int:
        """The bytes of the sectors touched, because memory moves whole sectors."""
        return SECTOR * len(self.trace)


def count(call: Call) -> Counts:
    """Run a call on CPU tensors, and count its accesses."""
    lib = library(call.kernels)
    lib.cudasim_trace(1)
    try:
        call.run()
    finally:
        lib.cudasim_trace(0)
    trace, launches = numbers(lib.cudasim_traced).view(-1, 5), json.loads(lib.cudasim_report())["launches"]
    blocks = launches[0]["blocks"] if launches else 0
    read, written = (sum(launch[key] for launch in launches) for key in ("bytes_read", "bytes_written"))
    return Counts(len(launches), blocks, read, written, len(trace[:, 3].unique()), trace)


def set_order(order: str, kernels: Kernels) -> None:
    """Set the order in which blocks and threads run: ``ascending``, ``descending`` or ``random:SEED``."""
    if (error := library(kernels).cudasim_set_order(order.encode())) is not None:
        raise RuntimeError(error.decode())


def library(kernels: Kernels, cuda: bool = False) -> Any:
    """Load the kernels from the current text of the file, compiled unless they were before.

    Raises:
        DoesNotCompile: the file does not compile; it lacks a function, for example.
        RuntimeError: there is no compiler, or the simulation does not compile.
    """
    unit, threads = translation_unit(kernels), f"-DSBNREF_THREADS={kernels.threads}"
    try:
        file = kernels.file
        built = compile_for_gpu(file, unit, threads) if cuda else compile_library(file, [LABORATORY], [threads], unit)
    except DoesNotCompile as error:
        raise DoesNotCompile(_about(kernels, str(error))) from None
    lib = ctypes.CDLL(str(built))
    for function in kernels.functions:
        getattr(lib, f"laboratory_{function}").restype = ctypes.c_char_p
    if not cuda:
        declare(lib)
    return lib


def upload(
    lib: Any,
    arrays: Mapping[str, Tensor],  # by their names in reports
    unwritten: Container[str] = (),  # names of uninitialized arrays, which kernels must write before they read
) -> dict[str, int]:
    """Clear the simulated GPU's memory, put arrays into it, and return their addresses."""
    lib.cudasim_reset()
    lib.cudasim_free_all()
    addresses = {}
    for name, array in arrays.items():
        pointer, size = ctypes.c_void_p(array.data_ptr()), ctypes.c_int64(array.numel() * array.itemsize)
        element, known = ctypes.c_int64(array.itemsize), int(name not in unwritten)
        addresses[name] = lib.cudasim_upload(name.encode(), pointer, size, element, known)
    return addresses


def declare(lib: Any) -> None:
    """Declare the return types of the simulation's functions."""
    for name in ("set_order", "report", "recorded", "last_write"):
        getattr(lib, f"cudasim_{name}").restype = ctypes.c_char_p
    lib.cudasim_upload.restype = ctypes.c_void_p
    lib.cudasim_acts.restype = lib.cudasim_traced.restype = ctypes.c_int64


def translation_unit(kernels: Kernels) -> str:
    """Return the source of a library with the kernels' functions."""
    exports = "\n".join(f"EXPORT({function})" for function in kernels.functions)
    return f'#include "{kernels.file.resolve()}"\n\n#include "exports.cuh"\n\n{exports}\n'


def _about(kernels: Kernels, message: str) -> str:
    """Turn a compiler's error about a missing function into a sentence about the user's file."""
    first = re.search(r"^(.+?):\d+(?::\d+)?: (?:fatal )?error: (.*)", message, re.MULTILINE)
    for function in kernels.functions:
        if first and Path(first[1]) != kernels.file and re.search(rf"\b{function}\b", first[2]):
            return f"expected {kernels.file} to define void {function}(const Problem&), found no such function"
    return message


def compile_for_gpu(file: Path, unit: str, *flags: str) -> Path:
    """Compile a translation unit that includes ``file`` with nvcc, and return the library."""

    def compile(built: Path) -> None:
        source = built.with_name("kernels.cu")
        source.write_text(unit)
        includes = (f"-I{CSRC}", f"-I{LABORATORY}")
        call_compiler(built, "-shared", *NVCC_FLAGS, *flags, *includes, str(source), command=nvcc_command())

    about = [unit, *flags, os.environ.get("TORCH_CUDA_ARCH_LIST", "")]
    return cached("sbnref_laboratory", [*included(file, [LABORATORY])], about, compile)


def numbers(get: Any) -> Tensor:
    """Return the int64 numbers that a library's function points to."""
    pointer = ctypes.POINTER(ctypes.c_int64)()
    size = get(ctypes.byref(pointer))
    if not size:
        return torch.zeros(0, dtype=torch.int64)
    return torch.frombuffer(bytearray(ctypes.string_at(pointer, 8 * size)), dtype=torch.int64)
